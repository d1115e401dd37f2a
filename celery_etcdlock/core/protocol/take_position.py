"""TakePosition: a queue position that stands without renewal, for a message that goes back to its queue meanwhile.

The key is put behind all others under the name. Whoever comes back with it looks at all that precede (rule 2): fewer
than the limit, and it takes the key over (``take_over``), for "fewer than that precede" stays true. A position says
until when it stands, as every key does that nobody renews, so a message that is lost doesn't keep others waiting long.

*Failure.* As in ``acquire_several``: while a try is in doubt the session is fenced and the next try is certain.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery_etcdlock.core import replies as store_replies
from celery_etcdlock.core.operations import Enqueue, FenceSession, Operation
from celery_etcdlock.core.ownership import Key, find_key
from celery_etcdlock.core.protocol.machine import SESSION_GONE, KeyMachine, SessionLost, Unavailable


@dataclass(frozen=True, slots=True)
class PositionTaken:
    """We put our key at ``mod_revision``. ``keys`` are as in ``Queued``."""

    mod_revision: int
    keys: tuple[Key, ...]


class TakePosition(KeyMachine["PositionTaken | SessionLost | Unavailable"]):
    """Put our key behind all others."""

    _fencing = False

    def _send(self, now: float) -> Operation:
        if self._fencing:
            return FenceSession(self.lease)
        return Enqueue(self.lease, self.epoch, self.name, self.token, self.record)

    def on(self, reply: store_replies.Reply, now: float) -> Operation | PositionTaken | SessionLost | Unavailable:
        match reply:
            case store_replies.SessionFenced(epoch=epoch) | store_replies.EpochMoved(epoch=epoch):
                self.epoch = epoch
                self._fencing = self._doubtful = False
            case store_replies.SessionGone():
                return SESSION_GONE
            case store_replies.Queued() | store_replies.Present() if self._doubtful:
                self._fencing = True
            case store_replies.Queued(keys=keys) | store_replies.Present(keys=keys):
                mine = find_key(keys, self.token)
                if mine is not None:
                    # Ours as it was created: whoever rewrote it since has it now (a newer call that replaces this one).
                    return PositionTaken(mine.create_revision, keys)
            case store_replies.Failed(error=error):
                self._error = error
                self._doubtful = self._doubtful or error.maybe_applied
                return self._try_again(error, now, doubtful=self._doubtful, give_up_at=self.give_up_at)
        if now >= self.answer_by:
            return self._unavailable(doubtful=True)
        return self._send(now)  # also when a Pause is over
