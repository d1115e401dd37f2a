"""A save without an answer isn't forgotten, whatever is saved next."""

from __future__ import annotations

import pytest

from celery_etcdlock.core.operations import FenceSession, GrantLease, HeldKey, SaveStates, StoreOperation, TryAcquire
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import Owned, SessionFenced, StoreReply
from celery_etcdlock.errors import LockLost, LockUnavailable
from celery_etcdlock.locking.clock import boot_time
from celery_etcdlock.locking.memory_store import MemoryStore
from celery_etcdlock.locking.saved_states import MOST_WRITES, SavedStates


class Forgetful:
    """A store whose answers get lost while ``silent``; what it is asked for takes effect."""

    def __init__(self) -> None:
        self.memory = MemoryStore()
        self.silent = False

    def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        reply = self.memory.perform(operation, timeout_seconds)
        if self.silent and isinstance(operation, SaveStates):
            raise LockUnavailable("lost", maybe_applied=True)
        return reply

    def close(self) -> None: ...


def own(store: Forgetful) -> HeldKey:
    store.perform(GrantLease(7, 60), 1.0)
    fenced = store.perform(FenceSession(7), 1.0)
    assert isinstance(fenced, SessionFenced)
    record = Record(Delivery("beat"), "beat", "host", 1, 0.0)
    owned = store.perform(TryAcquire(7, fenced.epoch, "name", "token", record), 1.0)
    assert isinstance(owned, Owned)
    return HeldKey("name", "token", owned.revision)


@pytest.fixture
def store() -> Forgetful:
    return Forgetful()


@pytest.fixture
def states(store: Forgetful) -> SavedStates:
    return SavedStates(store, boot_time, 0.1, "lock", own(store))


def test_another_save_of_the_same_key_comes_after_the_doubtful_one(store: Forgetful, states: SavedStates) -> None:
    states.save({"a": b"1"})
    store.silent = True
    with pytest.raises(LockUnavailable):
        states.save({"a": b"2", "b": b"1"})
    store.silent = False
    states.save({"a": b"3", "c": b"1"})
    assert states.load() == {"a": b"3", "b": b"1", "c": b"1"}


def test_more_than_fits_into_one_transaction(store: Forgetful, states: SavedStates) -> None:
    values = {f"key{number}": b"x" for number in range(2 * MOST_WRITES + 1)}
    states.save(values)
    states.save({**values, "key0": None})
    assert len(states.load()) == len(values) - 1


def test_who_is_not_the_only_writer_gives_up(store: Forgetful, states: SavedStates) -> None:
    states.save({"a": b"1"})
    other = SavedStates(store, boot_time, 0.1, "lock", HeldKey("name", "token", 3))
    other.load()
    other.save({"a": b"2"})
    with pytest.raises(LockLost, match="somebody else wrote"):
        states.save({"a": b"3"})
