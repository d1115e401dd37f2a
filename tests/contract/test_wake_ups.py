"""A release wakes as many of those in line, however many there are."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from celery_etcdlock.core.operations import (
    AwaitChange,
    StoreOperation,
)
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import StoreReply
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.manager import LockManager
from tests.waiting import wait_for

WAITERS = 30


class Counting:
    def __init__(self, store: LockStore) -> None:
        self.store = store
        self.woken = 0
        self.waiting = 0
        self._mutex = threading.Lock()

    def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        if not isinstance(operation, AwaitChange):
            return self.store.perform(operation, timeout_seconds)
        with self._mutex:
            self.waiting += 1
        reply = self.store.perform(operation, timeout_seconds)
        with self._mutex:
            self.waiting -= 1
            self.woken += 1
        return reply

    def close(self) -> None:
        self.store.close()


@pytest.mark.timeout(60)
def test_wake_ups_for_each_release_and_the_order_of_arrival(new_store: Callable[[], LockStore]) -> None:
    store = Counting(new_store())
    manager = LockManager(store, new_store(), timeout_seconds=10)
    entered: list[int] = []

    def wait_in_line(number: int) -> None:
        record = Record(Delivery(f"t{number}"), "t", "h", 1, 0.0)
        lock = manager.acquire("line", record, ttl_seconds=60, wait_seconds=50)
        assert isinstance(lock, Lock)
        entered.append(number)
        manager.release(lock)

    holder = manager.acquire("line", Record(Delivery("holder"), "t", "h", 1, 0.0), ttl_seconds=60)
    assert isinstance(holder, Lock)
    threads = [threading.Thread(target=wait_in_line, args=(number,)) for number in range(WAITERS)]
    for number, thread in enumerate(threads):
        thread.start()
        wait_for(lambda: store.waiting == number + 1, "it waits in line")  # noqa: B023
    assert store.woken == 0, "nobody polls"
    manager.release(holder)
    for thread in threads:
        thread.join(50)
    assert entered == list(range(WAITERS)), "in order of arrival"
    # The next in line by the release, and the one behind it, which is next in line now.
    assert store.woken <= 2 * WAITERS
    manager.close()
