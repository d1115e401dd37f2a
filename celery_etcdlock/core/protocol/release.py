"""Release: delete our key, only if it is exactly as we wrote it when we became owner.

The guard makes the request safe to repeat and harmless when late: nobody else's key has our token and our
revision. So no doubt has to be resolved; a release that can't be confirmed is only *unfinished* and must be
repeated for as long as the session is renewed, for the renewed lease would keep the key.

A mark that the task has run may be put in the same moment (``locking.done_marks``). Where its lease is gone the key is
deleted without it, and the outcome says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from celery_etcdlock.core import operations, replies
from celery_etcdlock.core.operations import MarkDone, Operation
from celery_etcdlock.core.protocol.machine import Machine, Unavailable
from celery_etcdlock.core.replies import Failed, NotHeld, Reply, SessionGone


@dataclass(frozen=True, slots=True)
class Released:
    """The key isn't there any more. ``was_held``: it was until then. ``marked``: the mark was put with it."""

    was_held: bool
    marked: bool = field(default=False, compare=False)


@dataclass(kw_only=True, eq=False)
class ReleaseKey(Machine["Released | Unavailable"]):
    """Release one key. ``Unavailable``: it must be tried again later."""

    name: str
    token: str
    mod_revision: int
    done: MarkDone | None = None

    def _send(self, now: float) -> Operation:
        return operations.Release(self.name, self.token, self.mod_revision, self.done)

    def on(self, reply: Reply, now: float) -> Operation | Released | Unavailable:
        match reply:
            case replies.Released():
                return Released(was_held=True, marked=self.done is not None)
            case SessionGone():
                self.done = None
            case NotHeld():
                # After an unanswered try the key may be gone by our own hand.
                return Released(was_held=self._doubtful)
            case Failed(error=error):
                self._doubtful = self._doubtful or error.maybe_applied
                return self._try_again(error, now)
        return self._send(now)  # also when a Pause is over
