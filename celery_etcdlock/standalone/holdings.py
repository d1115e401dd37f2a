"""Whose a holding is: what the callers of one shared lock object hold, each for itself.

A *caller* is a thread (or greenlet) or a task of an event loop. It is known by an object of its own that dies with it,
never by a number that the next thread may get.

A holding that was acquired by ``acquire`` belongs to its caller alone. One of a ``with`` block belongs to the block,
and the block to the function that it is in. So the holding of a block that ends is found by

1. the function that runs the block, if the same one entered it: a generator that was entered in one thread of a pool
   and is left in another;
2. else the caller, whose innermost block it is: an ``ExitStack``, whose own functions enter and leave;
3. else, if only one block is entered at all, that one.

Lists are only appended to, removed from and copied. Each of these is atomic, so there is no mutex that a finalizer or a
fork could find locked.
"""

from __future__ import annotations

import os
import weakref
from types import FrameType
from typing import Any

from celery_etcdlock.errors import LockLost
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.standalone.held_lock import TakenLocks

#: A file and a line.
Place = tuple[str, int]


class Holding(TakenLocks):
    """What one acquire got, and whose it is."""

    def __init__(self, name: str, caller: Any, block: FrameType | None, place: Place, manager: LockManager) -> None:
        super().__init__(name, [])
        self.caller: weakref.ref[Any] = weakref.ref(caller)
        #: The function whose ``with`` block it is; ``None`` for one that was acquired by a call.
        self.block = block
        #: Where it was acquired.
        self.place = place
        self.manager = manager
        #: Its holder released it.
        self.ended = False
        self.pid = os.getpid()

    @property
    def is_inherited(self) -> bool:
        """Held by the process that this one was forked from."""
        return self.pid != os.getpid()

    def release(self) -> LockLost | None:
        """Release all locks, even if interrupted. Returns the error that says why it wasn't ours any more, if so."""
        self.ended = True
        lost: list[Lock] = []
        struck: BaseException | None = None
        for lock in self.locks:
            try:
                self.manager.release(lock)
                if not lock.was_ours:
                    lost.append(lock)
            except BaseException as error:
                struck = struck or error
        if struck is not None:
            raise struck
        return LockLost(self.name, lost[0].lost_reason or "lost") if lost else None

    def abandon(self) -> None:
        """Release it in the background. Returns at once."""
        self.ended = True
        for lock in self.locks:
            self.manager.abandon(lock)

    def drop(self, what: str) -> str | None:
        """Nobody is left to release it: do that, and log it. Returns what to warn of. Takes no mutex."""
        if self.ended or self.is_inherited or self.lost_reason is not None:
            return None
        self.ended = True
        why = (
            f"{what} and never released it (acquired at {self.place[0]}:{self.place[1]}). Release it where it was "
            "acquired, or hold it by a with block"
        )
        for lock in self.locks:
            self.manager.drop(lock, why)
        return f"lock {self.name!r}: {why}"


class Holdings:
    """See the module. All that is held by one lock object."""

    def __init__(self) -> None:
        self._all: list[Holding] = []

    def add(self, holding: Holding) -> None:
        """After an early release in a block, what is acquired anew there is the block's."""
        for other in list(self._all):
            if other.ended and (other.block is None or other.caller() is holding.caller()):
                holding.block = holding.block or other.block
                self.remove(other)
        self._all.append(holding)

    def remove(self, holding: Holding) -> None:
        if holding in self._all:
            self._all.remove(holding)

    def of(self, caller: Any, *, inherited: bool = False) -> Holding | None:
        """What this caller holds, or has lost and not released yet; ``inherited``: before its process was forked."""
        found = [one for one in list(self._all) if one.caller() is caller and not one.ended]
        found = [one for one in found if one.is_inherited is inherited]
        return found[-1] if found and caller is not None else None

    def all(self) -> list[Holding]:
        return list(self._all)

    def to_leave(self, caller: Any, block: FrameType) -> Holding | None:
        """The holding whose block is left now by ``caller`` in the function ``block``; ``None`` if nobody can tell."""
        blocks = [holding for holding in list(self._all) if holding.block is not None]
        of_function = [holding for holding in blocks if holding.block is block]
        found = of_function or [holding for holding in blocks if holding.caller() is caller]
        return found[-1] if found else blocks[0] if len(blocks) == 1 else None
