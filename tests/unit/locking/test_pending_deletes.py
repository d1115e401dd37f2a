"""Pending deletes that an earlier run of their message is in the way of: they neither starve others nor spin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from celery_etcdlock.core.operations import Look, StoreOperation
from celery_etcdlock.core.record import Delivery, KeyKind, Record
from celery_etcdlock.core.replies import StoreReply
from celery_etcdlock.locking.clock import boot_time
from celery_etcdlock.locking.done_marks import DoneMarks
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.memory_store import MemoryStore
from celery_etcdlock.locking.outcomes import Claim
from celery_etcdlock.locking.pending_deletes import DELETES_AT_A_TIME, EndedRun, PendingCleanup, flush
from celery_etcdlock.locking.session import PendingDelete

IN_THE_WAY = DELETES_AT_A_TIME + 5


def record(delivery: Delivery) -> Record:
    return Record(delivery, "task", "host", 1, 0.0)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def manager(store: MemoryStore) -> Iterator[LockManager]:
    manager = LockManager(store)
    yield manager
    manager.close()


@pytest.fixture
def cleanup(store: MemoryStore, manager: LockManager) -> PendingCleanup:
    """More ended runs than are done at a time, whose earlier runs hold their locks still, and a delete behind them."""
    cleanup = PendingCleanup(boot_time, DoneMarks(store, boot_time, 1.0))
    for number in range(IN_THE_WAY):
        first = Delivery(f"id-{number}")
        manager.acquire(f"held-{number}", record(first), ttl_seconds=30)
        cleanup.releases.schedule_delete(EndedRun(f"held-{number}", Delivery(f"id-{number}", retries=1)))
    [claim] = manager.claims.claim_all(
        [("claimed", Record(Delivery("c"), "task", "host", 1, 0.0, kind=KeyKind.CLAIM))], 60
    )
    assert isinstance(claim, Claim)
    cleanup.releases.schedule_delete(PendingDelete("claimed", claim.token, claim.revision))
    return cleanup


def test_others_have_their_turn(cleanup: PendingCleanup, store: MemoryStore, manager: LockManager) -> None:
    for _ in range(2):
        assert flush(cleanup.releases, store, boot_time, boot_time() + 5)
    assert not manager.keys("claimed")
    assert len(cleanup.releases.pending_deletes()) == IN_THE_WAY, "these wait for the earlier runs"


def test_at_the_end_each_is_tried_once(
    cleanup: PendingCleanup, store: MemoryStore, manager: LockManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    perform, looks = store.perform, Counter[str]()

    def counted(operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        looks.update([operation.name] if isinstance(operation, Look) else [])
        return perform(operation, timeout_seconds)

    monkeypatch.setattr(store, "perform", counted)
    cleanup.flush_at_the_end(store, 2.0)
    assert not manager.keys("claimed")
    assert len(looks) > IN_THE_WAY
    assert max(looks.values()) <= 2, looks
