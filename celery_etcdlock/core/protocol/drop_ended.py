"""DropEnded: delete what stood for a run of a message that has come to its end.

A message that ends without having started (revoked, expired, refused), or before it took over what was taken for it,
leaves keys that nobody will use. They are found under the lock's name by what they say of themselves (``key_kinds``),
so headers that lie delete nothing of others', and a key whose revision the message doesn't know is found as well: the
handover for a retry is written after the retry was published.

*Failure.* Each delete compares the ``mod_revision`` that was just read, so all of it may be repeated, and be late. As
long as an earlier run of the message still holds the lock, it may yet leave a handover: then the outcome says that
another look is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from celery_etcdlock.core.key_kinds import Relation, ends_with, relation
from celery_etcdlock.core.operations import Look, Operation, Release
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.protocol.machine import Machine, Unavailable
from celery_etcdlock.core.record import Delivery, KeyKind
from celery_etcdlock.core.replies import Failed, NotHeld, Present, Released, Reply


@dataclass(frozen=True, slots=True)
class Ended:
    """How many keys were deleted; ``look_again`` while an earlier run of the message holds the lock."""

    dropped: int
    look_again: bool


@dataclass(kw_only=True, eq=False)
class DropEnded(Machine["Ended | Unavailable"]):
    """Delete the keys under ``name`` that stand for this run of a message, or only its position: the run goes on."""

    name: str
    delivery: Delivery
    position_only: bool = False
    _dropped = 0
    _look_again = False
    _ended: tuple[Key, ...] = field(default=(), init=False)

    def _send(self, now: float) -> Operation:
        if self._ended:
            key = self._ended[0]
            return Release(self.name, key.token, key.mod_revision)
        return Look(self.name)

    def on(self, reply: Reply, now: float) -> Operation | Ended | Unavailable:
        match reply:
            case Present(keys=keys):
                self._ended = tuple(key for key in keys if self._is_to_go(key))
                self._look_again = not self.position_only and any(self._may_leave_one(key) for key in keys)
            case Released():
                self._ended = self._ended[1:]
                self._dropped += 1
            case NotHeld():
                self._ended = ()
                return self._send(now)
            case Failed(error=error):
                return self._try_again(error, now)
            case _:  # a Pause is over
                return self._send(now)
        return self._send(now) if self._ended else Ended(self._dropped, self._look_again)

    def _is_to_go(self, key: Key) -> bool:
        if self.position_only:
            return relation(key.record, self.delivery) is Relation.OUR_POSITION
        return ends_with(key.record, self.delivery)

    def _may_leave_one(self, key: Key) -> bool:
        if key.record is None or key.record.kind is not KeyKind.HELD:
            return False
        holder = key.record.delivery
        return holder.task_id == self.delivery.task_id and self.delivery.follows(holder.step)
