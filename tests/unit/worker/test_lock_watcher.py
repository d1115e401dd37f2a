"""Which key under a lock's name is a waiting message's own place in line."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, KeyKind, Record
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.memory_store import MemoryStore
from celery_etcdlock.locking.outcomes import Claim
from celery_etcdlock.worker.lock_watcher import LOOK_SECONDS, LockWatcher, Waiter


def key(revision: int, task_id: str, **fields: Any) -> Key:
    record = Record(Delivery(task_id), "proj.task", "host", 1, 0.0, until=time.time() + 1000, **fields)
    return Key(f"token{revision}", revision, revision, record)


class Keys:
    """What stands under every name."""

    def __init__(self, *keys: Key) -> None:
        self._keys = keys

    def look(self, name: str) -> tuple[Key, ...]:
        return self._keys

    def keep(self, place: Claim, record: Record, seconds: float) -> Claim:
        return place


def told(waiter: Waiter, *keys: Key) -> list[Waiter]:
    """Whom one look at these keys tells that it is their turn."""
    going: list[Waiter] = []
    claims: Any = Keys(*keys)
    manager: Any = SimpleNamespace(claims=claims)
    LockWatcher(pytest.fail, lambda: manager, going.extend)._decide(waiter.name, [waiter])
    return going


def test_a_message_finds_the_place_that_it_was_given_before() -> None:
    waiter = Waiter("lock", Delivery("t"), 1, None, None)
    assert told(waiter, key(5, "other"), key(6, "t", kind=KeyKind.POSITION)) == []
    assert waiter.position == Claim("lock", "token6", 6)
    assert told(waiter, key(6, "t", kind=KeyKind.POSITION)) == [waiter]


@pytest.mark.parametrize("kind", [kind for kind in KeyKind if kind is not KeyKind.POSITION])
def test_no_other_key_of_its_message_is_a_queue_position(kind: KeyKind) -> None:
    waiter = Waiter("lock", Delivery("t"), 1, None, None)
    goes = told(waiter, key(5, "t", kind=kind))
    assert waiter.position is None
    assert goes == ([waiter] if kind is KeyKind.CLAIM else []), "what stands for it isn't in its way"


class QuietInspector:
    """A watch in which nothing ever happens."""

    def revision(self) -> int:
        return 1

    def deletions(self, after: int) -> Iterator[set[str]]:
        while True:
            time.sleep(0.01)
            yield set()

    def close(self) -> None:
        pass


def test_a_key_that_ends_by_its_time_wakes_those_who_wait_for_it() -> None:
    """Nobody deletes it but who looks, and that is no event."""
    manager = LockManager(MemoryStore())
    record = Record(Delivery("other"), "proj.task", "host", 1, 0.0, kind=KeyKind.WINDOW)
    manager.claims.claim_all([("lock", record)], 1.0)
    going: queue.SimpleQueue[list[Waiter]] = queue.SimpleQueue()
    inspector: Any = QuietInspector()
    watcher = LockWatcher(lambda: inspector, lambda: manager, going.put)
    waiter = Waiter("lock", Delivery("t"), 1, None, None)
    watcher.add(waiter)
    assert going.get(timeout=LOOK_SECONDS / 2) == [waiter]
    watcher.remove(waiter)
    manager.close()
