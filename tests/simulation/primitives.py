"""Locks, events and queues for simulated threads: as Python's, and whoever waits lets others run."""

from __future__ import annotations

import queue
from typing import Any

from tests.simulation.scheduler import Scheduler, Thread, WorldIsOver

__all__ = ["SimEvent", "SimLock", "SimQueue", "SimRLock"]


class SimLock:
    """``threading.Lock`` for simulated threads."""

    def __init__(self, scheduler: Scheduler, *, switches: bool = False) -> None:
        self._scheduler = scheduler
        self._locked = False
        self._waiters: list[Thread] = []
        self._switches = switches

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = self._scheduler
        if scheduler.over and scheduler.current is not None:
            raise WorldIsOver  # who waits for it is unwound; later it is but a lock that something global has kept
        if self._switches and scheduler.current is not None and scheduler.chance.random() < scheduler.mutex_switches:
            scheduler.switch()
        ends_at = None if timeout is None or timeout < 0 else scheduler.now + timeout
        while self._locked:
            if not blocking or scheduler.current is None:
                return False
            left = None if ends_at is None else ends_at - scheduler.now
            if left is not None and left <= 0:
                return False
            thread = scheduler.current
            self._waiters.append(thread)
            try:
                scheduler.park(left)
            finally:
                if thread in self._waiters:
                    self._waiters.remove(thread)
        self._locked = True
        return True

    def release(self) -> None:
        if not self._locked:
            raise RuntimeError("release unlocked lock")
        self._locked = False
        if self._waiters:
            self._scheduler.unpark(self._waiters.pop(0))

    def locked(self) -> bool:
        return self._locked

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class SimRLock(SimLock):
    """``threading.RLock`` for simulated threads."""

    def __init__(self, scheduler: Scheduler, *, switches: bool = False) -> None:
        super().__init__(scheduler, switches=switches)
        self._owner: Thread | None = None
        self._times = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        current = self._scheduler.current
        if self._owner is None or self._owner is not current:
            if not super().acquire(blocking, timeout):
                return False
            self._owner = current
        self._times += 1
        return True

    def release(self) -> None:
        if not self._is_owned():
            raise RuntimeError("cannot release un-acquired lock")
        self._times -= 1
        if not self._times:
            self._owner = None
            super().release()

    def _is_owned(self) -> bool:
        return self._times > 0 and self._owner is self._scheduler.current


class SimEvent:
    """``threading.Event`` for simulated threads."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False
        self._waiters: list[Thread] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        waiters, self._waiters = self._waiters, []
        for thread in waiters:
            self._scheduler.unpark(thread)

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set and self._scheduler.current is not None:
            self._waiters.append(self._scheduler.current)
            self._scheduler.park(timeout)
        return self._set


class SimQueue:
    """``queue.SimpleQueue`` for simulated threads."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._items: list[Any] = []
        self._waiters: list[Thread] = []

    def put(self, item: Any) -> None:
        self._items.append(item)
        if self._waiters:
            self._scheduler.unpark(self._waiters.pop(0))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        ends_at = None if timeout is None else self._scheduler.now + timeout
        while not self._items:
            left = None if ends_at is None else ends_at - self._scheduler.now
            if left is not None and left <= 0:
                raise queue.Empty
            thread = self._scheduler.current
            assert thread is not None
            self._waiters.append(thread)
            try:
                self._scheduler.park(left)
            finally:
                if thread in self._waiters:
                    self._waiters.remove(thread)
        return self._items.pop(0)

    def empty(self) -> bool:
        return not self._items
