"""The lock manager on every store: what tasks rely on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_etcdlock.core.events import LockAcquired, LockEvent, LockReleased, LockWasLost
from celery_etcdlock.core.operations import (
    AskToRelease,
    AwaitChange,
    FenceSession,
    KeepAlive,
    Look,
    Release,
    RevokeLease,
    StoreOperation,
    TryAcquire,
    TryAll,
)
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import (
    Asked,
    Owned,
    Present,
    StoreReply,
)
from celery_etcdlock.errors import LockLost, LockUnavailable
from celery_etcdlock.etcd import messages
from celery_etcdlock.listeners import Listeners
from celery_etcdlock.locking import renewal
from celery_etcdlock.locking.acquisition import AcquireRequest
from celery_etcdlock.locking.clock import boot_time
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.manager import Conflict, LockManager
from tests.waiting import wait_for

NewStore = Callable[[], LockStore]
NewManager = Callable[..., LockManager]


def record(owner: str = "task-id", limit: int = 1) -> Record:
    return Record(Delivery(owner), "proj.task", "host", os.getpid(), 0.0, limit)


class Flaky:
    """A store whose answers can get lost, after or instead of the operation."""

    def __init__(self, store: LockStore) -> None:
        self.store = store
        self.performed: list[StoreOperation] = []
        self.lose_replies_to: tuple[type, ...] = ()
        self.refuse: tuple[type, ...] = ()

    def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        if isinstance(operation, self.refuse):
            raise LockUnavailable("refused")
        self.performed.append(operation)
        reply = self.store.perform(operation, timeout_seconds)
        if isinstance(operation, self.lose_replies_to):
            raise LockUnavailable("reply lost", maybe_applied=True)
        return reply

    def close(self) -> None:
        self.store.close()

    def count(self, *kinds: type) -> int:
        return sum(isinstance(operation, kinds) for operation in self.performed)


@pytest.fixture
def new_manager(new_store: NewStore) -> Iterator[NewManager]:
    managers: list[LockManager] = []

    def make(**options: object) -> LockManager:
        options = {"store": new_store(), "renewal_store": new_store(), "timeout_seconds": 2.0} | options
        managers.append(LockManager(**options))  # type: ignore[arg-type]
        return managers[-1]

    yield make
    for manager in managers:
        manager.close()


def own(manager: LockManager, name: str, owner: str = "task-id", **options: object) -> Lock:
    outcome = manager.acquire(name, record(owner), ttl_seconds=30, **options)  # type: ignore[arg-type]
    assert isinstance(outcome, Lock), outcome
    return outcome


def keys_under(store: LockStore, name: str) -> list[str]:
    reply = store.perform(Look(name), 5.0)
    assert isinstance(reply, Present)
    return [key.record.delivery.task_id if key.record else "?" for key in reply.keys]


def test_one_holds_and_the_other_learns_who(new_manager: NewManager) -> None:
    one, other = new_manager(), new_manager()
    lock = own(one, "a", "first")
    conflict = other.acquire("a", record("second"), ttl_seconds=30)
    assert isinstance(conflict, Conflict)
    assert conflict.keys[0].record is not None
    assert conflict.keys[0].record.delivery.task_id == "first"
    one.release(lock)
    later = own(other, "a", "second")
    assert later.fencing_token > lock.fencing_token


def test_an_uncontended_lock_is_one_operation_and_so_is_its_release(
    new_store: NewStore, new_manager: NewManager
) -> None:
    store = Flaky(new_store())
    manager = new_manager(store=store)
    manager.release(own(manager, "warm-up"))
    store.performed.clear()
    manager.release(own(manager, "a"))
    assert [type(operation).__name__ for operation in store.performed] == ["TryAcquire", "Release"]


def test_a_lock_is_trusted_less_long_than_its_lease_lives(new_manager: NewManager) -> None:
    before = boot_time()
    lock = own(new_manager(), "a")
    assert 25 < lock.remaining < 30 - 0.25
    assert lock.session.deadline < before + 30
    lock.check()
    assert not lock.lost


def test_waiters_take_their_turns_in_order(new_manager: NewManager) -> None:
    managers = [new_manager() for _ in range(4)]
    lock = own(managers[0], "a")
    order: list[int] = []
    tokens: list[int] = []

    def wait(number: int) -> None:
        mine = own(managers[number], "a", f"waiter-{number}", wait_seconds=20.0)
        order.append(number)
        tokens.append(mine.fencing_token)
        managers[number].release(mine)

    probe = managers[0].store
    threads = []
    for number in range(1, 4):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        wait_for(lambda count=number + 1: len(keys_under(probe, "a")) == count, "the waiter's place in the queue")
    managers[0].release(lock)
    for thread in threads:
        thread.join(20)
    assert order == [1, 2, 3]
    assert tokens == sorted(tokens)
    assert tokens[0] > lock.fencing_token


def test_a_waiter_that_gives_up_leaves_no_place_behind(new_manager: NewManager) -> None:
    one, other = new_manager(), new_manager()
    own(one, "a", "first")
    started = time.monotonic()
    assert isinstance(other.acquire("a", record("second"), ttl_seconds=30, wait_seconds=0.5), Conflict)
    assert time.monotonic() - started >= 0.45
    assert keys_under(one.store, "a") == ["first"]


def test_at_most_limit_hold(new_manager: NewManager) -> None:
    managers = [new_manager() for _ in range(4)]
    outcomes = [manager.acquire("a", record(str(n), 3), ttl_seconds=30) for n, manager in enumerate(managers)]
    held = [outcome for outcome in outcomes if isinstance(outcome, Lock)]
    assert len(held) == 3
    assert len({lock.fencing_token for lock in held}) == 3
    managers[0].release(held[0])
    assert isinstance(managers[3].acquire("a", record("3", 3), ttl_seconds=30), Lock)


def test_the_smallest_limit_counts(new_manager: NewManager) -> None:
    one, other = new_manager(), new_manager()
    assert isinstance(one.acquire("a", record("one", 1), ttl_seconds=30), Lock)
    assert isinstance(other.acquire("a", record("other", 5), ttl_seconds=30), Conflict)


def test_many_threads_of_two_processes_never_overlap(new_manager: NewManager) -> None:
    managers = [new_manager(), new_manager()]
    inside: list[int] = []
    most: list[int] = []
    tokens: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            lock = own(managers[number % 2], "a", f"t{number}", wait_seconds=60.0)
            inside.append(number)
            most.append(len(inside))
            tokens.append(lock.fencing_token)
            inside.remove(number)
            managers[number % 2].release(lock)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(tokens) == 40
    assert max(most) == 1
    assert tokens == sorted(set(tokens))


def test_a_lost_reply_to_an_acquire_is_an_acquired_lock(new_store: NewStore, new_manager: NewManager) -> None:
    store = Flaky(new_store())
    manager = new_manager(store=store)
    manager.release(own(manager, "warm-up"))
    answers = iter([True, False])
    original = store.perform

    def lose_first(operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        store.lose_replies_to = (TryAcquire,) if isinstance(operation, TryAcquire) and next(answers) else ()
        return original(operation, timeout_seconds)

    store.perform = lose_first  # type: ignore[method-assign]
    lock = own(manager, "a")
    assert lock.doubtful
    manager.release(lock)
    assert keys_under(store.store, "a") == []


def test_no_answer_at_all_raises_and_leaves_no_ghost(new_store: NewStore, new_manager: NewManager) -> None:
    store = Flaky(new_store())
    manager = new_manager(store=store)
    manager.release(own(manager, "warm-up"))
    store.lose_replies_to = (TryAcquire,)
    store.refuse = (FenceSession,)
    with pytest.raises(LockUnavailable):
        manager.acquire("a", record(), ttl_seconds=30)
    # The renewal's connection works: it fences the session and deletes the key that was put all the same.
    wait_for(lambda: keys_under(store.store, "a") == [], "the doubtful key is gone")


def test_a_release_without_an_answer_is_repeated_until_there_is_one(
    new_store: NewStore, new_manager: NewManager
) -> None:
    store = Flaky(new_store())
    manager = new_manager(store=store, timeout_seconds=0.3)
    lock = own(manager, "a")
    store.refuse = (Release,)
    manager.release(lock)
    wait_for(lambda: keys_under(store.store, "a") == [], "the key is released in the background")


def test_a_late_release_does_not_touch_the_next_owner(new_store: NewStore, new_manager: NewManager) -> None:
    one, other = new_manager(), new_manager()
    lock = own(one, "a", "first")
    raw = new_store()
    raw.perform(Release("a", lock.token, lock.fencing_token), 5.0)
    own(other, "a", "second")
    one.release(lock)
    assert keys_under(raw, "a") == ["second"]


def test_an_interrupted_acquire_leaves_no_key(new_store: NewStore, new_manager: NewManager) -> None:
    store = Flaky(new_store())
    manager = new_manager(store=store)
    manager.release(own(manager, "warm-up"))
    original = store.perform

    def interrupt(operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        reply = original(operation, timeout_seconds)
        if isinstance(operation, TryAcquire):
            raise KeyboardInterrupt
        return reply

    store.perform = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        manager.acquire("a", record(), ttl_seconds=30)
    wait_for(lambda: keys_under(store.store, "a") == [], "the key of the interrupted acquire is gone")


def test_an_interrupted_wait_leaves_no_place(new_store: NewStore, new_manager: NewManager) -> None:
    one = new_manager()
    own(one, "a", "first")
    store = Flaky(new_store())
    manager = new_manager(store=store)
    original = store.perform

    def interrupt(operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        if isinstance(operation, AwaitChange):
            raise SystemExit
        return original(operation, timeout_seconds)

    store.perform = interrupt  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        manager.acquire("a", record("second"), ttl_seconds=30, wait_seconds=10.0)
    wait_for(lambda: keys_under(store.store, "a") == ["first"], "the waiter's place is gone")


def test_locks_outlive_their_ttl_while_they_are_held(new_manager: NewManager) -> None:
    one, other = new_manager(), new_manager()
    lock = one.acquire("a", record(), ttl_seconds=2)
    assert isinstance(lock, Lock)
    first_deadline = lock.session.deadline
    wait_for(lambda: lock.session.deadline > first_deadline + 2, "the session was renewed for more than a TTL", 15)
    lock.check()
    assert isinstance(other.acquire("a", record(), ttl_seconds=2), Conflict)


def test_a_store_that_goes_away_means_a_lost_lock_before_its_lease_ends(
    new_store: NewStore, new_manager: NewManager
) -> None:
    events: list[LockEvent] = []
    renewal = Flaky(new_store())
    manager = new_manager(renewal_store=renewal, listener=events.append)
    renewal.refuse = (KeepAlive,)
    before = boot_time()
    lost: list[Lock] = []
    lock = manager.acquire("a", record(), ttl_seconds=2, on_lost=lost.append)
    assert isinstance(lock, Lock)
    wait_for(lambda: lost, "the holder is told", 10)
    assert boot_time() - before < 3
    assert lost == [lock]
    assert lock.lost
    assert lock.remaining == 0
    with pytest.raises(LockLost, match="couldn't be renewed"):
        lock.check()
    assert any(isinstance(event, LockWasLost) for event in events)
    manager.release(lock)


def test_a_store_that_refuses_releases_frees_by_the_end_of_the_lease(
    new_store: NewStore, new_manager: NewManager
) -> None:
    """As an etcd does that is out of space."""
    store, renewal = Flaky(new_store()), Flaky(new_store())
    manager = new_manager(store=store, renewal_store=renewal, timeout_seconds=0.5)
    lock = manager.acquire("a", record(), ttl_seconds=60)
    assert isinstance(lock, Lock)
    store.refuse = renewal.refuse = (Release,)
    manager.release(lock)
    looker = new_store()
    wait_for(lambda: not _keys(looker, "a"), "the lock is free", 10)
    store.refuse = renewal.refuse = ()
    manager.release(own(manager, "a"))


def _keys(store: LockStore, name: str) -> tuple[object, ...]:
    reply = store.perform(Look(name), 5.0)
    assert isinstance(reply, Present)
    return reply.keys


def test_listeners_that_raise_block_neither_a_loss_nor_a_release(new_store: NewStore, new_manager: NewManager) -> None:
    def listener(event: LockEvent) -> None:
        raise RuntimeError("a listener's own trouble")

    told: list[Lock] = []

    def on_lost(lock: Lock) -> None:
        told.append(lock)
        raise RuntimeError("its own trouble too")

    manager = new_manager(listener=Listeners([listener]))
    other = manager.acquire("other", record(), ttl_seconds=2, on_lost=told.append)
    lock = manager.acquire("a", record(), ttl_seconds=2, on_lost=on_lost)
    assert isinstance(lock, Lock)
    assert isinstance(other, Lock)
    new_store().perform(RevokeLease(lock.session.lease), 5.0)
    wait_for(lambda: len(told) == 2, "both holders are told", 10)
    manager.release(lock)
    manager.release(other)
    manager.release(own(manager, "a"))
    manager.release(own(manager, "a"))


def test_a_holder_is_told_of_its_loss_whatever_a_listener_does(new_store: NewStore, new_manager: NewManager) -> None:
    def listener(event: LockEvent) -> None:
        if isinstance(event, LockWasLost):
            raise SoftTimeLimitExceeded

    told: list[Lock] = []
    manager = new_manager(listener=listener)
    lock = manager.acquire("a", record(), ttl_seconds=2, on_lost=told.append)
    assert isinstance(lock, Lock)
    new_store().perform(RevokeLease(lock.session.lease), 5.0)
    wait_for(lambda: told == [lock], "the holder is told", 10)


def test_a_loss_that_only_the_release_finds_is_told(new_store: NewStore, new_manager: NewManager) -> None:
    events: list[LockEvent] = []
    manager = new_manager(listener=events.append)
    lock = own(manager, "a")
    new_store().perform(Release("a", lock.token, lock.fencing_token), 5.0)
    manager.release(lock)
    assert [type(event) for event in events] == [LockAcquired, LockWasLost]
    assert lock.lost


def test_a_deleted_key_is_found_missing_while_its_lease_lives(new_store: NewStore, new_manager: NewManager) -> None:
    manager = new_manager()
    lost: list[Lock] = []
    kept = manager.acquire("kept", record(), ttl_seconds=2)
    lock = manager.acquire("a", record(), ttl_seconds=2, on_lost=lost.append)
    assert isinstance(lock, Lock)
    assert isinstance(kept, Lock)
    new_store().perform(Release("a", lock.token, lock.fencing_token), 5.0)
    wait_for(lambda: lost, "the holder is told", 10)
    with pytest.raises(LockLost, match="deleted"):
        lock.check()
    assert not kept.lost


def test_of_many_held_keys_each_is_looked_at_in_turn(
    new_store: NewStore, new_manager: NewManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "KEYS_PER_RENEWAL", 2)
    manager = new_manager()
    lost: list[Lock] = []
    locks = [manager.acquire(f"a{number}", record(), ttl_seconds=30, on_lost=lost.append) for number in range(5)]
    last = locks[-1]
    assert isinstance(last, Lock)
    new_store().perform(Release(last.name, last.token, last.fencing_token), 5.0)
    looked_at: list[int] = []
    for _ in range(3):
        keys = last.session.next_to_check(2)
        looked_at += [int(key.name[1:]) for key in keys]
    assert looked_at == [0, 1, 2, 3, 4, 0]
    for _ in range(3):
        manager._keeper.renew(last.session)
    wait_for(lambda: lost == [last], "the holder is told")


def test_a_revoked_lease_loses_its_locks_and_the_next_acquire_opens_another(
    new_store: NewStore, new_manager: NewManager
) -> None:
    manager = new_manager()
    lost: list[Lock] = []
    lock = manager.acquire("a", record(), ttl_seconds=2, on_lost=lost.append)
    assert isinstance(lock, Lock)
    new_store().perform(RevokeLease(lock.session.lease), 5.0)
    wait_for(lambda: lost, "the holder is told", 10)
    again = manager.acquire("a", record(), ttl_seconds=2)
    assert isinstance(again, Lock)
    assert again.fencing_token > lock.fencing_token


def test_a_revoked_lease_is_no_reason_to_fail_the_next_acquire(new_store: NewStore, new_manager: NewManager) -> None:
    manager = new_manager()
    lock = own(manager, "a")
    new_store().perform(RevokeLease(lock.session.lease), 5.0)
    assert own(manager, "b").fencing_token > lock.fencing_token


def test_a_body_is_entered_with_at_least_half_of_the_time(new_store: NewStore, new_manager: NewManager) -> None:
    """Rule 8."""
    now = [1000.0]
    store = Flaky(new_store())
    manager = new_manager(store=store, clock=lambda: now[0])
    manager.release(own(manager, "warm-up"))
    store.performed.clear()
    now[0] += 20.0
    lock = own(manager, "a")
    assert store.count(KeepAlive) >= 1 or lock.session.deadline > 1030
    assert lock.remaining > 15


def test_an_acquire_without_a_name_says_so(new_manager: NewManager) -> None:
    with pytest.raises(ValueError, match="name of at least one lock"):
        new_manager().acquire_all(AcquireRequest((), record(), 30))


def test_several_locks_that_are_lost_at_once_are_taken_anew(new_store: NewStore, new_manager: NewManager) -> None:
    """None of them may be left behind, for the next try would take it for somebody else's."""
    now = [1000.0]
    store, raw = Flaky(new_store()), new_store()
    manager = new_manager(store=store, clock=lambda: now[0], timeout_seconds=100.0)
    interrupted: list[Lock] = []
    session = own(manager, "warm-up").session
    original = store.perform

    def lose(operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        reply = original(operation, timeout_seconds)
        if isinstance(operation, TryAll) and isinstance(reply, Owned) and session.lost_reason() is None:
            last = operation.tries[-1]
            raw.perform(Release(last.name, last.token, reply.revision), 5.0)
            now[0] += 20.0  # so that the keys are looked at before the body
        if isinstance(operation, FenceSession) and store.count(TryAll):
            session.lose("its time was over just then")
        return reply

    store.perform = lose  # type: ignore[method-assign]
    locks = manager.acquire_all(AcquireRequest(("a", "b"), record(), 30, on_lost=interrupted.append))
    assert isinstance(locks, list), locks
    assert [lock.session is session for lock in locks] == [False, False]
    assert len(_keys(raw, "a")) == len(_keys(raw, "b")) == 1
    wait_for(lambda: session not in manager._keeper._sessions.all(), "the lost session is dealt with")
    assert interrupted == []
    for lock in locks:
        manager.release(lock)
    assert not _keys(raw, "a")
    assert not _keys(raw, "b")


def test_a_holder_that_is_asked_to_let_go_is_told_and_keeps_the_lock_until_then(
    new_store: NewStore, new_manager: NewManager
) -> None:
    events: list[LockEvent] = []
    manager, store = new_manager(listener=events.append), new_store()
    told: list[Lock] = []
    lock = manager.acquire("a", record(), ttl_seconds=2, on_lost=told.append)
    assert isinstance(lock, Lock)
    assert store.perform(AskToRelease("a", lock.token, lock.fencing_token, "admin@host"), 5.0) == Asked()
    wait_for(lambda: told, "the holder is told", 10)
    with pytest.raises(LockLost, match="admin@host asked its holder to release"):
        lock.check()
    before = lock.session.deadline
    wait_for(lambda: lock.session.deadline > before + 1, "it is still renewed", 10)
    assert keys_under(store, "a") == ["task-id"]
    assert told == [lock]
    manager.release(lock)
    assert keys_under(store, "a") == []
    assert [type(event) for event in events] == [LockAcquired, LockWasLost]


def test_listeners_hear_and_can_do_no_harm(new_manager: NewManager) -> None:
    events: list[LockEvent] = []

    def listener(event: LockEvent) -> None:
        events.append(event)
        raise RuntimeError("a listener's own trouble")

    manager = new_manager(listener=Listeners([listener]))
    lock = own(manager, "a")
    manager.release(lock)
    manager.release(lock)
    acquired, released = events
    assert isinstance(acquired, LockAcquired)
    assert isinstance(released, LockReleased)
    assert (acquired.name, acquired.fencing_token) == ("a", lock.fencing_token)
    assert (released.name, released.fencing_token) == ("a", lock.fencing_token)
    assert acquired.record == released.record == lock.record


def test_a_task_that_is_interrupted_while_a_listener_runs_leaves_no_lock(
    new_store: NewStore, new_manager: NewManager
) -> None:
    told: list[LockEvent] = []

    def listener(event: LockEvent) -> None:
        raise SoftTimeLimitExceeded

    manager = new_manager(listener=Listeners([listener, told.append]))
    held: list[Lock] = []
    with pytest.raises(SoftTimeLimitExceeded):
        own(manager, "a", on_held=held.append)
    with pytest.raises(SoftTimeLimitExceeded):
        manager.release(held[0])
    assert not _keys(new_store(), "a")
    assert [type(event) for event in told] == [LockAcquired, LockReleased]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_release_its_parents_lock(new_store: NewStore, new_manager: NewManager) -> None:
    manager = new_manager()
    lock = own(manager, "a", "parent")
    pid = os.fork()
    if pid == 0:
        manager.release(lock)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert keys_under(new_store(), "a") == ["parent"]
    manager.release(lock)
    assert keys_under(new_store(), "a") == []


@pytest.mark.parametrize("new_store", ["etcd"], indirect=True)  # only a real store can hold what we didn't write
def test_an_unknown_record_is_held_by_somebody(new_manager: NewManager) -> None:
    manager = new_manager()
    store = manager.store
    transport, locks = store._transport, store._layout.locks  # type: ignore[attr-defined]
    for number, value in enumerate([b"", b"\xff\x00", b'{"v":2}', b"[" * 100_000, b'{"v":1,"since":1e999}']):
        put = messages.PutRequest(key=locks + b"a/foreign", value=value).SerializeToString()
        transport.call("/etcdserverpb.KV/Put", put, 5.0)
        conflict = manager.acquire("a", record(), ttl_seconds=30)
        assert isinstance(conflict, Conflict), number
        assert conflict.keys[0].record is None
