"""Resolve: make sure that an unanswered request neither has taken effect nor ever will.

A request that timed out here may be applied there much later: a stopped follower forwards it when it wakes, and
the server's own deadline starts only when it reads the request. So before a doubtful token may be forgotten:

1. *fence*: write the session's key. Every request that names the old epoch is refused from now on.
2. *look*: what the doubtful request did before the fence is there for all to see, and nothing can be added.
3. *delete* our key, if it is there, under the ``mod_revision`` just read.

Without the fence, a late put becomes a ghost that our renewed lease keeps alive for the life of the process (rule 3).
A token whose key others may rewrite, too (one that is handed from a message to its worker), is deleted only where the
record shows that the doubtful try wrote it.

A session that is gone has taken its keys along and refuses everything that names it: nothing is left to resolve.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery_etcdlock.core import replies as store_replies
from celery_etcdlock.core.operations import FenceSession, Look, Operation, Release
from celery_etcdlock.core.ownership import Key, find_key
from celery_etcdlock.core.protocol.machine import Machine, Unavailable


@dataclass(frozen=True, slots=True)
class Resolved:
    """The token has no key and can't get one: forget it."""


@dataclass(kw_only=True, eq=False)
class Resolve(Machine["Resolved | Unavailable"]):
    """Resolve one doubtful token. ``Unavailable``: it is still doubtful."""

    lease: int
    name: str
    token: str
    attempt: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._step: Operation = FenceSession(self.lease)

    def _send(self, now: float) -> Operation:
        return self._step

    def on(self, reply: store_replies.Reply, now: float) -> Operation | Resolved | Unavailable:
        match reply:
            case store_replies.SessionFenced():
                self._step = Look(self.name)
            case store_replies.SessionGone() | store_replies.Released():
                return Resolved()
            case store_replies.Present(keys=keys):
                mine = find_key(keys, self.token)
                if mine is None or self._is_anothers(mine):
                    return Resolved()
                self._step = Release(self.name, self.token, mine.mod_revision)
            case store_replies.NotHeld():
                self._step = Look(self.name)
            case store_replies.Failed(error=error):
                return self._try_again(error, now, doubtful=True)
        return self._step  # also when a Pause is over

    def _is_anothers(self, key: Key) -> bool:
        return self.attempt is not None and (key.record is None or key.record.attempt != self.attempt)
