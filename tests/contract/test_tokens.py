"""Which token the next lock of a name has: the same key again, so that a name's history in the store stays short."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from celery_etcdlock.core.operations import (
    CheckKeys,
    Look,
    Promote,
    Release,
    StoreOperation,
    TryAcquire,
)
from celery_etcdlock.core.record import Delivery, KeyKind, Record
from celery_etcdlock.core.replies import (
    Present,
    StoreReply,
)
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.acquisition import AcquireRequest
from celery_etcdlock.locking.key_tokens import KeyTokenPool
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.outcomes import Claim, Conflict
from tests.contract.test_pending import take_over

RECORD = Record(Delivery("task-id"), "proj.task", "host", os.getpid(), 0.0)


class Meddled:
    """A store that lets a test act before or after each operation."""

    def __init__(self, store: LockStore) -> None:
        self._store = store
        self.before: Callable[[StoreOperation], None] = lambda _: None
        self.after: Callable[[StoreOperation], None] = lambda _: None

    def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        self.before(operation)
        reply = self._store.perform(operation, timeout_seconds)
        self.after(operation)
        return reply

    def close(self) -> None:
        self._store.close()


@pytest.fixture
def meddled(new_store: Callable[[], LockStore]) -> Meddled:
    return Meddled(new_store())


@pytest.fixture
def manager(meddled: Meddled) -> Iterator[LockManager]:
    manager = LockManager(meddled)
    yield manager
    manager.close()


def own(manager: LockManager, name: str = "a", **options: object) -> Lock:
    lock = manager.acquire(name, RECORD, ttl_seconds=30, **options)  # type: ignore[arg-type]
    assert isinstance(lock, Lock)
    return lock


def test_a_name_that_is_locked_again_and_again_has_one_key(manager: LockManager, store: LockStore) -> None:
    tokens, fencing = [], []
    for _ in range(3):
        lock = own(manager)
        tokens.append(lock.token)
        fencing.append(lock.fencing_token)
        assert isinstance(manager.acquire("a", RECORD, ttl_seconds=30), Conflict)
        manager.release(lock)
        (several,) = manager.acquire_all(AcquireRequest(("a",), RECORD, 30))  # type: ignore[misc]
        tokens.append(several.token)
        manager.release(several)
    assert set(tokens[1:]) <= set(tokens[:2])  # one was in use when the other was refused
    assert fencing == sorted(set(fencing))
    assert own(manager, "b").token not in tokens
    assert store.perform(Look("a"), 5.0).keys == ()  # type: ignore[union-attr]


def test_two_at_once_have_two_keys(manager: LockManager) -> None:
    two = [replace(RECORD, limit=2, delivery=Delivery(f"t{number}")) for number in range(2)]
    locks = [manager.acquire("a", record, ttl_seconds=30) for record in two]
    assert all(isinstance(lock, Lock) for lock in locks)
    assert len({lock.token for lock in locks if isinstance(lock, Lock)}) == 2


def test_one_in_doubt_never_serves_again(manager: LockManager, meddled: Meddled) -> None:
    def lose(operation: StoreOperation) -> None:
        if isinstance(operation, TryAcquire):
            meddled.after = lambda _: None
            raise LockUnavailable("lost on the way", maybe_applied=True)

    first = own(manager)
    manager.release(first)
    meddled.after = lose
    doubted = own(manager)
    assert doubted.token == first.token
    manager.release(doubted)
    assert own(manager).token != first.token


def test_one_that_was_deleted_by_somebody_never_serves_again(manager: LockManager, store: LockStore) -> None:
    lock = own(manager)
    store.perform(Release("a", lock.token, lock.fencing_token), 5.0)
    manager.release(lock)
    assert own(manager).token != lock.token


def test_one_that_others_know_of_never_serves_again(manager: LockManager) -> None:
    lock = own(manager)
    claim = manager.keep(lock, replace(RECORD, kind=KeyKind.HANDOVER), 30)
    assert isinstance(claim, Claim)
    taken = take_over(manager, claim, RECORD, ttl_seconds=30)
    assert isinstance(taken, Lock)
    assert taken.token == lock.token
    manager.release(taken)
    assert own(manager).token != lock.token


def test_a_renewal_that_saw_the_last_holding_says_nothing_of_this_one(manager: LockManager, meddled: Meddled) -> None:
    """Released and acquired again while the renewal looks at its keys."""
    first = own(manager)
    later: list[Lock] = []

    def swap(operation: StoreOperation) -> None:
        if isinstance(operation, CheckKeys):
            meddled.before = lambda _: None
            manager.release(first)
            later.append(own(manager))

    meddled.before = swap
    assert manager._keeper.renew(first.session)
    (lock,) = later
    assert lock.token == first.token
    assert not lock.lost
    manager.release(lock)
    assert lock.was_ours, "until now"


def test_an_ask_for_the_last_holding_is_not_told_to_this_one(manager: LockManager, store: LockStore) -> None:
    first = own(manager)
    seen = store.perform(Look("a"), 5.0)
    assert isinstance(seen, Present)
    manager.ask_to_release("a", seen.keys[0], "a newer call")
    manager.release(first)
    lock = own(manager)
    assert lock.token == first.token
    assert manager._keeper.renew(lock.session)
    assert not lock.lost
    manager.ask_to_release("a", seen.keys[0], "a newer call, late")
    assert manager._keeper.renew(lock.session)
    assert not lock.lost


def test_the_pool_keeps_the_names_used_last() -> None:
    pool = KeyTokenPool(most_names=2)
    tokens = {name: pool.take(name) for name in "abc"}
    for name in "ab":
        pool.give_back(name, tokens[name])
    pool.give_back("a", pool.take("a"))
    pool.give_back("c", tokens["c"])
    assert pool.take("a") == tokens["a"]
    assert pool.take("c") == tokens["c"]
    assert pool.take("b") != tokens["b"]


def test_a_token_whose_key_was_left_to_stand_doesnt_serve_again(
    manager: LockManager, meddled: Meddled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key was left, and a signal struck before the answer was here: the release that follows finds it changed."""
    monkeypatch.setattr(manager._keeper, "_may_flush", lambda: False)  # the thread will delete it, later

    def strike(operation: StoreOperation) -> None:
        if isinstance(operation, Promote):
            raise KeyboardInterrupt

    lock = own(manager)
    meddled.after = strike
    with pytest.raises(KeyboardInterrupt):
        manager.keep(lock, replace(lock.record, kind=KeyKind.LEAST_HOLD), 60.0)
    meddled.after = lambda _: None
    manager.keep(lock, replace(lock.record, kind=KeyKind.LEAST_HOLD), 60.0)
    assert [key.token for key in manager.keys("a")] == [lock.token]
    again = manager.acquire("a", replace(RECORD, delivery=Delivery("another")), ttl_seconds=30)
    assert isinstance(again, Conflict)
