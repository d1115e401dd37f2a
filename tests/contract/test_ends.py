"""The end of a key that stands without renewal, judged by hosts whose wall clocks differ, over every store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from celery_etcdlock.core.operations import (
    AskAge,
    FenceSession,
    GrantLease,
    KeepAlive,
    Look,
    Release,
    RevokeLease,
    TryAcquire,
)
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import (
    LeaseAge,
    LeaseUnknown,
    NotHeld,
    Owned,
    Present,
    SessionFenced,
)
from celery_etcdlock.locking.clock import boot_time
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.outcomes import Claim, Conflict
from tests.contract.test_pending import take_over
from tests.waiting import wait_for

SECONDS = 5.0
MINUTES = 60.0
STANDS = 1.5

NewStore = Callable[[], LockStore]
NewManager = Callable[..., LockManager]


def record(task_id: str) -> Record:
    return Record(Delivery(task_id), "proj.task", "host", 1, 0.0)


@pytest.fixture
def host(new_store: NewStore, request: pytest.FixtureRequest) -> NewManager:
    """Makes the locks of a host whose wall clock is so many seconds ahead."""

    def make(ahead: float = 0.0, store: LockStore | None = None) -> LockManager:
        store = store or new_store()
        manager = LockManager(store, store, timeout_seconds=SECONDS, wall_clock=lambda: time.time() + ahead)
        request.addfinalizer(manager.close)
        return manager

    return make


def claim(manager: LockManager, seconds: float = STANDS) -> Claim:
    [outcome] = manager.claims.claim_each([("a", record("first"))], seconds)
    assert isinstance(outcome, Claim)
    return outcome


def by_call(manager: LockManager) -> bool:
    [outcome] = manager.claims.claim_each([("a", record("second"))], 60.0)
    return isinstance(outcome, Claim)


def by_calls(manager: LockManager) -> bool:
    outcomes = manager.claims.claim_all([("a", record("second")), ("b", record("second"))], 60.0)
    return isinstance(outcomes[0], Claim)


def by_worker(manager: LockManager) -> bool:
    return isinstance(manager.acquire("a", record("second"), ttl_seconds=30), Lock)


def by_look(manager: LockManager) -> bool:
    return not manager.claims.look("a")


WAYS = pytest.mark.parametrize("gets_it", [by_call, by_calls, by_worker, by_look])


class TestClocksThatDiffer:
    @WAYS
    def test_one_that_is_ahead_gets_it_when_its_time_is_over_and_not_before(
        self, host: NewManager, gets_it: Callable[[LockManager], bool]
    ) -> None:
        ahead = host(10 * MINUTES)
        before = boot_time()
        first = claim(host())
        assert not gets_it(ahead)
        wait_for(lambda: gets_it(ahead), "the key's time is over")
        assert boot_time() - before >= STANDS
        assert not host().claims.drop(first)

    def test_one_that_is_an_hour_ahead_frees_nothing_either(self, host: NewManager) -> None:
        first = claim(host(), 60.0)
        assert not by_call(host(60 * MINUTES))
        assert host().claims.drop(first)

    def test_a_writer_that_is_behind_gets_its_time(self, host: NewManager) -> None:
        before = boot_time()
        first = claim(host(-10 * MINUTES), 1.0)
        wait_for(lambda: by_look(host()), "its time is over")
        assert boot_time() - before >= 1.0
        assert not host().claims.drop(first)

    def test_one_that_is_behind_finds_it_standing_until_another_has_cleared_it(self, host: NewManager) -> None:
        behind = host(-10 * MINUTES)
        claim(host(), 0.1)
        time.sleep(1.2)
        assert not by_call(behind)
        wait_for(lambda: by_look(host()), "a host that is in order clears it")
        assert by_call(behind)

    def test_a_waiter_that_is_ahead_sleeps_until_the_time_is_over(self, new_store: NewStore, host: NewManager) -> None:
        store = _Counting(new_store())
        claim(host())
        before = boot_time()
        lock = host(10 * MINUTES, store).acquire("a", record("b"), ttl_seconds=30, wait_seconds=20)
        assert isinstance(lock, Lock)
        assert boot_time() - before >= STANDS - 0.5
        assert store.count(AskAge) <= 4, "it spins"

    def test_a_place_in_line_and_a_least_hold(self, host: NewManager) -> None:
        lock = host().acquire("a", record("first"), ttl_seconds=30)
        assert isinstance(lock, Lock)
        place, _ = host().claims.take_position("a", record("next"), 60.0)
        manager = host()
        held = manager.acquire("b", record("first"), ttl_seconds=30)
        assert isinstance(held, Lock)
        left = manager.keep(held, held.record, 60.0)
        ahead = host(10 * MINUTES)
        assert [key.token for key in ahead.claims.look("a")] == [lock.token, place.token]
        assert left is not None
        assert [key.token for key in ahead.claims.look("b")] == [left.token]
        assert isinstance(ahead.acquire("b", record("x"), ttl_seconds=30), Conflict)

    def test_a_record_of_an_older_version_is_over_a_quarter_of_an_hour_later(
        self, store: LockStore, host: NewManager
    ) -> None:
        old = replace(record("old"), until=time.time())
        _put(store, old)
        assert not by_call(host(10 * MINUTES))
        assert not by_worker(host(10 * MINUTES))
        assert by_worker(host(16 * MINUTES))


class TestMeanwhile:
    """What happens between the question and the delete."""

    @WAYS
    def test_its_worker_takes_it_over(
        self, new_store: NewStore, host: NewManager, gets_it: Callable[[LockManager], bool]
    ) -> None:
        message, worker = host(), host()
        first = claim(message, 0.05)
        taken: list[object] = []

        def meet() -> None:
            if not taken:
                taken.append(take_over(worker, first, record("first"), ttl_seconds=30))

        rival = host(store=_Meeting(new_store(), Release, meet))
        assert wait_for(lambda: not gets_it(rival) and taken, "the rival clears the key")
        [lock] = taken
        assert isinstance(lock, Lock)
        assert [(key.token, key.mod_revision) for key in worker.keys("a")] == [(lock.token, lock.fencing_token)]
        assert not gets_it(rival)

    @WAYS
    def test_its_lease_ends(
        self, new_store: NewStore, host: NewManager, gets_it: Callable[[LockManager], bool]
    ) -> None:
        claim(host(), 60.0)
        store = new_store()
        [key] = _keys(store)
        rival = host(10 * MINUTES, _Meeting(store, AskAge, lambda: _revoke(store, key)))
        assert gets_it(rival)

    def test_who_is_asked_does_not_know_the_lease_yet(self, new_store: NewStore, host: NewManager) -> None:
        """A leader that was replaced, say: it must not free the key."""
        first = claim(host(), 60.0)
        assert not by_worker(host(10 * MINUTES, _Ignorant(new_store())))
        assert not by_call(host(10 * MINUTES, _Ignorant(new_store())))
        assert not by_look(host(10 * MINUTES, _Ignorant(new_store())))
        assert host().claims.drop(first)


class TestAge:
    def test_it_is_never_more_than_it_is(self, store: LockStore) -> None:
        lease = 10**9 + time.time_ns() % 10**9
        before = boot_time()
        store.perform(GrantLease(lease, 60), SECONDS)
        fenced = store.perform(FenceSession(lease), SECONDS)
        assert isinstance(fenced, SessionFenced)

        def age() -> float:
            reply = store.perform(AskAge(lease), SECONDS)
            assert isinstance(reply, LeaseAge)
            assert reply.seconds <= boot_time() - before
            assert reply.term == fenced.term
            return reply.seconds

        assert age() < 1.0
        wait_for(lambda: age() >= 1.0, "the lease gets older")
        store.perform(RevokeLease(lease), SECONDS)
        assert store.perform(AskAge(lease), SECONDS) == LeaseUnknown()

    def test_a_key_tells_its_lease(self, store: LockStore) -> None:
        lease = _put(store, record("t"))
        [key] = _keys(store)
        assert key.lease == lease
        assert store.perform(KeepAlive(key.lease), SECONDS)


def _put(store: LockStore, a_record: Record) -> int:
    lease = time.time_ns()
    store.perform(GrantLease(lease, 3600), SECONDS)
    fenced = store.perform(FenceSession(lease), SECONDS)
    assert isinstance(fenced, SessionFenced)
    owned = store.perform(TryAcquire(lease, fenced.epoch, "a", "old", a_record), SECONDS)
    assert isinstance(owned, Owned)
    return lease


def _keys(store: LockStore) -> tuple[Key, ...]:
    reply = store.perform(Look("a"), SECONDS)
    assert isinstance(reply, Present)
    return reply.keys


def _revoke(store: LockStore, key: Key) -> None:
    store.perform(RevokeLease(key.lease), SECONDS)
    assert store.perform(Release("a", key.token, key.mod_revision), SECONDS) == NotHeld()


class _Around:
    def __init__(self, store: LockStore) -> None:
        self.store = store
        self.performed: list[Any] = []

    def perform(self, operation: Any, timeout_seconds: float) -> Any:
        self.performed.append(operation)
        return self.store.perform(operation, timeout_seconds)

    def close(self) -> None:
        pass


class _Counting(_Around):
    def count(self, kind: type[Any]) -> int:
        return sum(isinstance(operation, kind) for operation in self.performed)


class _Meeting(_Around):
    """Does something just before each operation of one kind."""

    def __init__(self, store: LockStore, kind: type[Any], first: Callable[[], object]) -> None:
        super().__init__(store)
        self.kind, self.first = kind, first

    def perform(self, operation: Any, timeout_seconds: float) -> Any:
        if isinstance(operation, self.kind):
            self.first()
        return super().perform(operation, timeout_seconds)


class _Ignorant(_Around):
    def perform(self, operation: Any, timeout_seconds: float) -> Any:
        return LeaseUnknown() if isinstance(operation, AskAge) else super().perform(operation, timeout_seconds)
