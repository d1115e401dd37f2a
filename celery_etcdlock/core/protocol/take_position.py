"""TakePosition: a place in line that stands without renewal, for a message that goes back to its queue meanwhile.

The key is put behind all others under the name. Whoever comes back with it looks at all that precede (rule 2): fewer
than the limit, and it takes the key over (``take_over``), for "fewer than that precede" stays true. A place says until
when it stands, as every key does that nobody renews, so a message that is lost doesn't keep the line waiting for long.

*Failure.* As in ``acquire_several``: while a try is in doubt the session is fenced and the next try is certain.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery_etcdlock.core import replies as store_replies
from celery_etcdlock.core.operations import Enqueue, FenceSession, Operation
from celery_etcdlock.core.ownership import Key, find_key
from celery_etcdlock.core.protocol.machine import Machine, SessionLost, Unavailable
from celery_etcdlock.core.record import Record
from celery_etcdlock.errors import LockUnavailable


@dataclass(frozen=True, slots=True)
class PositionTaken:
    """We put our key at ``mod_revision``. ``keys`` are as in ``Queued``."""

    mod_revision: int
    keys: tuple[Key, ...]


class TakePosition(Machine["PositionTaken | SessionLost | Unavailable"]):
    """Put our key behind all others. Times as in ``Acquire``."""

    def __init__(
        self, *, lease: int, epoch: int, name: str, token: str, record: Record, give_up_at: float, deadline: float
    ) -> None:
        self._lease = lease
        self._epoch = epoch
        self._name = name
        self._token = token
        self._record = record
        self._give_up_at = give_up_at
        self.answer_by = deadline
        self._fencing = False
        self._doubtful = False
        self._last_error = LockUnavailable("no answer from the lock store")

    def start(self, now: float) -> Operation:
        if self._fencing:
            return FenceSession(self._lease)
        return Enqueue(self._lease, self._epoch, self._name, self._token, self._record)

    def on(self, reply: store_replies.Reply, now: float) -> Operation | PositionTaken | SessionLost | Unavailable:
        match reply:
            case store_replies.SessionFenced(epoch=epoch) | store_replies.EpochMoved(epoch=epoch):
                self._epoch = epoch
                self._fencing = self._doubtful = False
            case store_replies.SessionGone():
                return SessionLost("its lease has ended or was revoked, or its key was deleted")
            case store_replies.Queued() | store_replies.Present() if self._doubtful:
                self._fencing = True
            case store_replies.Queued(keys=keys) | store_replies.Present(keys=keys):
                mine = find_key(keys, self._token)
                if mine is not None:
                    # Ours as it was created: whoever rewrote it since has it now (a newer call that replaces this one).
                    return PositionTaken(mine.create_revision, keys)
            case store_replies.Failed(error=error):
                self._last_error = error
                self._doubtful = self._doubtful or error.maybe_applied
                step = self._try_again(error, now, doubtful=self._doubtful, give_up_at=self._give_up_at)
                if step is not None:
                    return step
            case _:  # a Pause is over
                pass
        if now >= self.answer_by:
            return Unavailable(self._last_error, doubtful=True)
        return self.start(now)
