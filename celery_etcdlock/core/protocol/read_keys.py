"""LookAt: all keys under a name, less those whose time is over, which are deleted on the way (``core.expiry``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from celery_etcdlock.core import replies as store_replies
from celery_etcdlock.core.expiry import Expiry
from celery_etcdlock.core.operations import Look, Operation, Release
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.protocol.machine import Machine, Unavailable


@dataclass(frozen=True, slots=True)
class Seen:
    """The keys under the name, in order of creation."""

    keys: tuple[Key, ...]


@dataclass(kw_only=True, eq=False)
class LookAt(Machine["Seen | Unavailable"]):
    """Look at one name. ``wall_offset`` as in ``Acquire``."""

    name: str
    wall_offset: float

    _judged: Key | None = field(default=None, init=False)
    _asked_at = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._ends = Expiry(self.wall_offset)
        self._step: Operation = Look(self.name)

    def _send(self, now: float) -> Operation:
        return self._step

    def on(self, reply: store_replies.Reply, now: float) -> Operation | Seen | Unavailable:
        match reply:
            case store_replies.Present(keys=keys):
                self._judged = self._ends.first_over(keys, now)
                if self._judged is None:
                    return Seen(keys)
                self._step = self._ends.question(self.name, self._judged)
                self._asked_at = now
            case store_replies.LeaseAge() | store_replies.LeaseUnknown():
                assert self._judged is not None
                ends = self._ends.judged(self._judged, reply, self._asked_at, now)
                if ends is None:
                    self._step = Release(self.name, self._judged.token, self._judged.mod_revision)
                else:
                    self._ends, self._step = ends, Look(self.name)
            case store_replies.Failed(error=error):
                return self._try_again(error, now)
            case _:  # deleted, gone, or a Pause is over
                if isinstance(self._step, Release):
                    self._step = Look(self.name)
        return self._step
