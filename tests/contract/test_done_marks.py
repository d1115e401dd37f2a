"""Marks of deliveries that have come to their end (rule 7), on every store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_etcdlock.core.operations import (
    FenceSession,
    GrantLease,
    LookForDone,
    MarkDone,
    Promote,
    Release,
    RevokeLease,
    StoreOperation,
    TryAcquire,
    TryAll,
)
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import (
    Done,
    DoneSeen,
    NotHeld,
    Owned,
    Present,
    Released,
    SessionFenced,
    SessionGone,
    StoreReply,
)
from celery_etcdlock.locking.clock import boot_time
from celery_etcdlock.locking.done_marks import DoneMarks
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.manager import LockManager

SECONDS = 5.0
DELIVERY = Delivery("id", 1, 0, 2)
OTHERS = [Delivery("id"), Delivery("id", 1, 0, 1), Delivery("id", 1, 2, 2), Delivery("id:1", 0, 0, 2), Delivery("")]


def test_a_mark_is_of_one_delivery_and_goes_with_its_lease(store: LockStore) -> None:
    assert store.perform(MarkDone(7, DELIVERY), SECONDS) == SessionGone()
    store.perform(GrantLease(7, 60), SECONDS)
    assert store.perform(LookForDone(DELIVERY), SECONDS) == DoneSeen(False)
    for _ in range(2):
        assert store.perform(MarkDone(7, DELIVERY), SECONDS) == Done()
    assert store.perform(LookForDone(DELIVERY), SECONDS) == DoneSeen(True)
    for other in OTHERS:
        assert store.perform(LookForDone(other), SECONDS) == DoneSeen(False)
    store.perform(RevokeLease(7), SECONDS)
    assert store.perform(LookForDone(DELIVERY), SECONDS) == DoneSeen(False)


def test_a_lease_that_ended_is_replaced(new_store: Callable[[], LockStore]) -> None:
    store = new_store()
    marks = DoneMarks(store, boot_time, SECONDS)
    marks.put(DELIVERY)
    assert marks.seen(DELIVERY)
    mark = marks.mark(DELIVERY, boot_time() + SECONDS)
    assert mark is not None
    store.perform(RevokeLease(mark.lease), SECONDS)
    assert not marks.seen(DELIVERY)
    marks.put(DELIVERY)
    assert marks.seen(DELIVERY)


CALL = Delivery("id", call="one")
OF_CALL = Record(CALL, "proj.task", "host", 1, 0.0)


def open_session(store: LockStore, lease: int) -> int:
    store.perform(GrantLease(lease, 60), SECONDS)
    fenced = store.perform(FenceSession(lease), SECONDS)
    assert isinstance(fenced, SessionFenced)
    return fenced.epoch


def test_a_release_puts_the_mark_and_an_acquire_reads_it(store: LockStore) -> None:
    """In their own transactions, whichever operation takes the lock."""
    epoch = open_session(store, 7)
    store.perform(GrantLease(8, 60), SECONDS)

    def take(name: str, token: str = "t", record: Record = OF_CALL) -> StoreReply:
        return store.perform(TryAcquire(7, epoch, name, token, record), SECONDS)

    def has_run(reply: StoreReply) -> Any:
        assert isinstance(reply, Owned | Present)
        return reply.has_run

    owned = take("a")
    assert isinstance(owned, Owned)
    assert owned.has_run is False
    other = take("b")
    assert isinstance(other, Owned)
    release = Release("a", "t", owned.revision, MarkDone(8, CALL))
    assert store.perform(Release("a", "t", owned.revision - 1, MarkDone(8, CALL)), SECONDS) == NotHeld()
    assert store.perform(LookForDone(CALL), SECONDS) == DoneSeen(False), "no mark without the release"
    assert store.perform(release, SECONDS) == Released()
    assert store.perform(LookForDone(CALL), SECONDS) == DoneSeen(True)

    assert has_run(take("a", "t2")) is True
    assert has_run(take("a", "t2")) is True, "a repeat after a lost answer"
    assert has_run(take("a", "t3")) is True, "refused"
    promote: StoreOperation = Promote(7, epoch, "b", "t", OF_CALL, 0, other.revision, alone=False)
    assert has_run(store.perform(promote, SECONDS)) is True
    tries = tuple(TryAcquire(7, epoch, name, "t", OF_CALL) for name in ("c", "d"))
    for _ in range(2):
        assert has_run(store.perform(TryAll(tries), SECONDS)) is True

    for someone in (Delivery("id", call="other"), Delivery("id", 1, call="one")):
        assert has_run(take(f"of {someone}", record=Record(someone, "proj.task", "host", 1, 0.0))) is False
    unknown = Record(Delivery("id"), "proj.task", "host", 1, 0.0)
    assert has_run(take("unknown", record=unknown)) is None, "nobody can say of which call"


def test_a_release_whose_mark_has_no_lease_releases_nothing_yet(store: LockStore) -> None:
    epoch = open_session(store, 7)
    owned = store.perform(TryAcquire(7, epoch, "a", "t", OF_CALL), SECONDS)
    assert isinstance(owned, Owned)
    assert store.perform(Release("a", "t", owned.revision, MarkDone(9, CALL)), SECONDS) == SessionGone()
    assert store.perform(Release("a", "t", owned.revision), SECONDS) == Released()
    assert store.perform(LookForDone(CALL), SECONDS) == DoneSeen(False)


def test_a_lock_is_released_though_its_mark_has_no_lease(new_store: Callable[[], LockStore]) -> None:
    manager = LockManager(new_store())
    lock = manager.acquire("a", OF_CALL, ttl_seconds=30)
    assert isinstance(lock, Lock)
    mark = manager.done.mark(CALL, boot_time() + SECONDS)
    assert mark is not None
    new_store().perform(RevokeLease(mark.lease), SECONDS)
    assert manager.release(lock, CALL) is False
    assert manager.keys("a") == ()
    manager.close()
