"""Marks that a run has ended, where the store gives no answer: nothing is released before they are put."""

from __future__ import annotations

import pytest

from celery_etcdlock.core.operations import MarkDone, RevokeLease, StoreOperation
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import StoreReply
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.memory_store import MemoryStore

RUN = Delivery("id", call="one")


def test_the_lease_of_a_lost_session_isnt_revoked_while_a_mark_is_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever got one of its locks would run once more what has run."""
    store = MemoryStore()
    perform = store.perform
    answered: list[StoreOperation] = []
    silent = True

    def without_marks(operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        if silent and isinstance(operation, MarkDone):
            raise LockUnavailable("no answer", maybe_applied=True)
        answered.append(operation)
        return perform(operation, timeout_seconds)

    monkeypatch.setattr(store, "perform", without_marks)
    manager = LockManager(store)
    try:
        for is_owed in (True, False):
            silent = is_owed
            lock = manager.acquire("name", Record(RUN, "task", "host", 1, 0.0), ttl_seconds=30)
            assert isinstance(lock, Lock)
            if is_owed:
                manager._keeper.schedule_mark(RUN)
            session = lock.session
            manager._keeper._bury(session)  # as when its deadline has passed
            assert (RevokeLease(session.lease) in answered) is not is_owed
            assert manager.done.seen(RUN) is not is_owed
            manager.keys("name") and manager.done and store.perform(RevokeLease(session.lease), 1.0)
    finally:
        silent = False
        manager.close()
