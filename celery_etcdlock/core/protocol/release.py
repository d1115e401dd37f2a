"""Release: delete our key, only if it is exactly as we wrote it when we became owner.

The guard makes the request safe to repeat and harmless when late: nobody else's key has our token and our
revision. So no doubt has to be resolved; a release that can't be confirmed is only *unfinished* and must be
repeated for as long as the session is renewed, for the renewed lease would keep the key.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery_etcdlock.core import operations, replies
from celery_etcdlock.core.operations import Operation
from celery_etcdlock.core.protocol.machine import Machine, Unavailable, pause_before_try
from celery_etcdlock.core.replies import (
    Failed,
    NotHeld,
    Reply,
)

__all__ = ["ReleaseKey", "ReleaseOutcome", "Released"]


@dataclass(frozen=True, slots=True)
class Released:
    """The key isn't there any more. ``was_held`` is false when somebody or the lease's end had removed it before."""

    was_held: bool


ReleaseOutcome = Released | Unavailable


class ReleaseKey(Machine[ReleaseOutcome]):
    """Release one key by ``deadline``. Outcomes: ``Released``, or ``Unavailable`` when it must be tried again later."""

    def __init__(self, *, name: str, token: str, mod_revision: int, deadline: float) -> None:
        self._operation = operations.Release(name, token, mod_revision)
        self.answer_by = deadline
        self._tries = 1
        self._doubtful = False

    def start(self, now: float) -> Operation:
        return self._operation

    def on(self, reply: Reply, now: float) -> Operation | ReleaseOutcome:
        match reply:
            case replies.Released():
                return Released(was_held=True)
            case NotHeld():
                # After an unanswered try the key may be gone by our own hand.
                return Released(was_held=self._doubtful)
            case Failed(error=error):
                self._doubtful = self._doubtful or error.maybe_applied
                self._tries += 1
                if error.permanent or now >= self.answer_by:
                    return Unavailable(error)
                pause = pause_before_try(self._tries)
                if pause.seconds:
                    return pause
            case _:
                pass
        return self._operation
