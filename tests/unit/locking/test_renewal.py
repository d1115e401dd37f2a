"""What the renewal's thread is told of."""

from __future__ import annotations

import pytest

from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.memory_store import MemoryStore
from celery_etcdlock.locking.renewal import LONGEST_SLEEP_SECONDS, SessionKeeper
from tests.waiting import wait_for

RECORD = Record(Delivery("task"), "proj.work", "host", 1, 1.0)


class Struck(Exception):
    pass


def test_a_session_whose_opener_was_struck_is_renewed_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a time limit, just before it told the renewal's thread, which waits for nothing else."""
    manager = LockManager(MemoryStore())
    wake, seconds_to_next = SessionKeeper._wake, SessionKeeper._seconds_to_next
    waits: list[float] = []

    def note(keeper: SessionKeeper) -> float:
        waits.append(seconds_to_next(keeper))
        return waits[-1]

    def strike(keeper: SessionKeeper) -> None:
        raise Struck

    monkeypatch.setattr(SessionKeeper, "_seconds_to_next", note)
    manager.acquire("other", RECORD, ttl_seconds=3600)
    alarm = manager._keeper._alarm
    wait_for(lambda: waits and alarm._lock.locked() and waits[-1] == LONGEST_SLEEP_SECONDS, "the thread waits")
    monkeypatch.setattr(SessionKeeper, "_wake", strike)
    with pytest.raises(Struck):
        manager.acquire("a", RECORD, ttl_seconds=1)
    monkeypatch.setattr(SessionKeeper, "_wake", wake)
    lock = manager.acquire("a", RECORD, ttl_seconds=1)
    assert isinstance(lock, Lock)
    deadline = lock.session.deadline
    wait_for(lambda: lock.session.deadline > deadline, "it is renewed", 10)
    assert not lock.lost
    manager.close()
