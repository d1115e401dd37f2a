"""Release: delete our key, only if it is exactly as we wrote it when we became owner.

The guard makes the request safe to repeat and harmless when late: nobody else's key has our token and our
revision. So no doubt has to be resolved; a release that can't be confirmed is only *unfinished* and must be
repeated for as long as the session is renewed, for the renewed lease would keep the key.

A mark that the task has run may be put in the same moment (``locking.done_marks``). Where its lease is gone the key is
deleted without it, and the outcome says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from celery_etcdlock.core import operations, replies
from celery_etcdlock.core.operations import MarkDone, Operation
from celery_etcdlock.core.protocol.machine import Machine, Unavailable
from celery_etcdlock.core.replies import Failed, NotHeld, Reply, SessionGone


@dataclass(frozen=True, slots=True)
class Released:
    """The key isn't there any more. ``was_held`` is false when somebody or the lease's end had removed it before.

    ``marked``: the mark was put with it.
    """

    was_held: bool
    marked: bool = field(default=False, compare=False)


ReleaseOutcome = Released | Unavailable


class ReleaseKey(Machine[ReleaseOutcome]):
    """Release one key by ``deadline``. Outcomes: ``Released``, or ``Unavailable`` when it must be tried again later."""

    def __init__(
        self, *, name: str, token: str, mod_revision: int, deadline: float, done: MarkDone | None = None
    ) -> None:
        self._operation = operations.Release(name, token, mod_revision, done)
        self.answer_by = deadline
        self._doubtful = False

    def start(self, now: float) -> Operation:
        return self._operation

    def on(self, reply: Reply, now: float) -> Operation | ReleaseOutcome:
        match reply:
            case replies.Released():
                return Released(was_held=True, marked=self._operation.done is not None)
            case SessionGone():
                self._operation = replace(self._operation, done=None)
            case NotHeld():
                # After an unanswered try the key may be gone by our own hand.
                return Released(was_held=self._doubtful)
            case Failed(error=error):
                self._doubtful = self._doubtful or error.maybe_applied
                return self._try_again(error, now) or self._operation
            case _:
                pass
        return self._operation
