"""``current_lock()``: the lock held by the task that runs here."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Protocol

from celery_etcdlock.errors import LockLost, NotLocked


class CurrentLock(Protocol):
    """What ``current_lock()`` returns."""

    @property
    def name(self) -> str:
        """The lock's name."""

    @property
    def fencing_token(self) -> int:
        """Rises strictly with every new ownership of the name; let the resource refuse lower ones."""

    @property
    def remaining(self) -> float:
        """Seconds for which the lock may be trusted if it weren't renewed any more; 0 once it is lost."""

    @property
    def lost(self) -> bool:
        """Whether the lock can't be trusted any more."""

    def check(self) -> None:
        """Raise ``LockLost`` once the lock can't be trusted any more. Costs no network."""


class UnprotectedLock:
    """In place of a lock, where ``etcdlock_on_unavailable = "run"`` let a task run without one.

    It is lost from the start, and every resource that has seen a real fencing token refuses its 0.
    """

    fencing_token = 0
    remaining = 0.0
    lost = True

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self) -> None:
        raise LockLost(self.name, "it was never taken: etcd was unreachable and etcdlock_on_unavailable is 'run'")


class SeveralLocks:
    """All locks of a task that has several.

    Its fencing token is the last one's: any of the locks has a greater one once another holder takes it.
    """

    def __init__(self, locks: Sequence[CurrentLock]) -> None:
        self._locks = locks
        self.name = ", ".join(lock.name for lock in locks)
        self.fencing_token = max(lock.fencing_token for lock in locks)

    @property
    def remaining(self) -> float:
        return min(lock.remaining for lock in self._locks)

    @property
    def lost(self) -> bool:
        return any(lock.lost for lock in self._locks)

    def check(self) -> None:
        for lock in self._locks:
            lock.check()


_current: ContextVar[CurrentLock | None] = ContextVar("celery_etcdlock_current", default=None)


def current_lock() -> CurrentLock:
    """The lock held by the task running now: the innermost, where locked tasks call each other directly.

    Raises ``NotLocked`` outside the body of a locked task, and in threads that it starts itself.
    """
    lock = _current.get()
    if lock is None:
        raise NotLocked("current_lock() is for the body of a task that is locked (a SingletonTask)")
    return lock


class holding:  # noqa: N801 - it is used like a function
    """Make ``lock`` the current one in a ``with`` block; ``None``: leave the one that is.

    No generator: one that is left behind by a signal ends in whatever context it is collected in.
    """

    def __init__(self, lock: CurrentLock | None) -> None:
        self._lock = lock
        self._before = _current.get()

    def __enter__(self) -> None:
        if self._lock is not None:
            _current.set(self._lock)

    def __exit__(self, *error: object) -> None:
        _current.set(self._before)
