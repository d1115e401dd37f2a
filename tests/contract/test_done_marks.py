"""Marks of deliveries that have come to their end (rule 7), on every store."""

from __future__ import annotations

from collections.abc import Callable

from celery_etcdlock.core.operations import (
    GrantLease,
    LookForDone,
    MarkDone,
    RevokeLease,
)
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.core.replies import (
    Done,
    DoneSeen,
    SessionGone,
)
from celery_etcdlock.locking.clock import boot_time
from celery_etcdlock.locking.done import DoneMarks
from celery_etcdlock.locking.pending import PendingLocks
from celery_etcdlock.locking.session import Session as LockSession
from celery_etcdlock.locking.store import LockStore

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
    pending = PendingLocks(store, boot_time, SECONDS, owe=LockSession.abandon)
    marks = DoneMarks(pending, store, boot_time, SECONDS)
    marks.put(DELIVERY)
    assert marks.seen(DELIVERY)
    store.perform(RevokeLease(pending.session(600.0, boot_time() + SECONDS).lease), SECONDS)
    assert not marks.seen(DELIVERY)
    marks.put(DELIVERY)
    assert marks.seen(DELIVERY)
