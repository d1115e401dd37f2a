"""Locks that stand without renewal, and keys that change hands, over every store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from celery_etcdlock.core.operations import (
    Look,
    LookForMark,
    Release,
    TryAcquire,
    TryAll,
    TryEach,
)
from celery_etcdlock.core.protocol import PositionTaken, TakePosition
from celery_etcdlock.core.record import Delivery, KeyKind, Record
from celery_etcdlock.core.replies import (
    EachTried,
    EpochMoved,
    MarkSeen,
    NotHeld,
    Owned,
    Present,
    SessionGone,
    StoreReply,
)
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.acquisition import AcquireRequest
from celery_etcdlock.locking.claims import Claims
from celery_etcdlock.locking.clock import boot_time
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.outcomes import Claim, Conflict
from celery_etcdlock.locking.pending_deletes import Releases, flush
from celery_etcdlock.locking.session import PendingDelete
from celery_etcdlock.locking.shared_leases import KEYS_PER_LEASE
from tests.contract.test_store import SECONDS, Session


def record(task_id: str = "t", limit: int = 1) -> Record:
    return Record(Delivery(task_id), "proj.task", "host", 1, 0.0, limit)


def take_over(manager: LockManager, claim: Claim, by: Record, *, ttl_seconds: int) -> Lock | Conflict:
    outcome = manager.acquire_all(AcquireRequest((claim.name,), by, ttl_seconds, claim=claim))
    return outcome if isinstance(outcome, Conflict) else outcome[0]


class Wall:
    """A wall clock that a test sets forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def pending(store: LockStore, wall: Wall) -> Claims:
    return Claims(store, boot_time, SECONDS, wall)


@pytest.fixture
def manager(new_store: Callable[[], LockStore], wall: Wall) -> Iterator[LockManager]:
    manager = LockManager(new_store(), new_store(), timeout_seconds=SECONDS, wall_clock=wall)
    yield manager
    manager.close()


def claim(pending: Claims, name: str = "a", seconds: float = 60.0, by: Record | None = None) -> Claim:
    [outcome] = pending.claim_each([(name, by or record())], seconds)
    assert isinstance(outcome, Claim)
    return outcome


def keys(store: LockStore, name: str = "a") -> tuple[str, ...]:
    reply = store.perform(Look(name), SECONDS)
    assert isinstance(reply, Present)
    return tuple(key.token for key in reply.keys)


class TestOperations:
    def test_each_try_has_its_own_outcome(self, store: LockStore) -> None:
        session = Session(store)
        held = session.own("b", "x")
        tries = tuple(TryAcquire(session.lease, session.epoch, name, "t", record()) for name in "abc")
        reply = store.perform(TryEach(tries), SECONDS)
        assert isinstance(reply, EachTried)
        a, b, c = reply.outcomes
        assert isinstance(a, Owned)
        assert isinstance(c, Owned)
        assert isinstance(b, Present)
        assert [(key.token, key.mod_revision) for key in b.keys] == [("x", held)]
        again = store.perform(TryEach(tries[:1]), SECONDS)
        assert again == EachTried((a,)), "a repeat finds its own key"

    def test_all_or_none(self, store: LockStore) -> None:
        session = Session(store)
        held = session.own("b", "x")
        tries = tuple(TryAcquire(session.lease, session.epoch, name, "t", record()) for name in "abc")
        reply = store.perform(TryAll(tries), SECONDS)
        assert isinstance(reply, EachTried)
        assert [isinstance(outcome, Present) and len(outcome.keys) for outcome in reply.outcomes] == [0, 1, 0]
        assert [keys(store, name) for name in "abc"] == [(), ("x",), ()]
        store.perform(Release("b", "x", held), SECONDS)
        owned = store.perform(TryAll(tries), SECONDS)
        assert isinstance(owned, Owned)
        assert store.perform(TryAll(tries), SECONDS) == owned, "a repeat finds its own keys"
        assert [keys(store, name) for name in "abc"] == [("t",)] * 3

    @pytest.mark.parametrize("operation", [TryEach, TryAll])
    def test_several_respect_the_epoch_and_the_session(
        self, store: LockStore, operation: type[TryEach] | type[TryAll]
    ) -> None:
        session = Session(store)
        late = operation((TryAcquire(session.lease, session.epoch, "a", "t", record()),))
        epoch = session.fence()
        assert store.perform(late, SECONDS) == EpochMoved(epoch)
        gone = operation((TryAcquire(session.lease + 10**6, 1, "a", "t", record()),))
        assert store.perform(gone, SECONDS) == SessionGone()
        assert keys(store) == ()


class TestClaims:
    def test_a_claim_stands_and_is_dropped_by_who_knows_it(self, pending: Claims, store: LockStore) -> None:
        mine = claim(pending)
        [other] = pending.claim_each([("a", record("other"))], 60)
        assert isinstance(other, Conflict)
        assert other.keys[0].token == mine.token
        assert pending.drop(mine)
        assert not pending.drop(mine)
        assert keys(store) == ()

    def test_hundreds_take_few_round_trips(self, store: LockStore, wall: Wall) -> None:
        counted = _Counting(store)
        pending = Claims(counted, boot_time, SECONDS, wall)
        outcomes = pending.claim_each([(f"n{number}", record()) for number in range(250)], 60)
        assert all(isinstance(outcome, Claim) for outcome in outcomes)
        assert counted.operations <= 2 + 3

    def test_leases_are_shared_and_bounded(self, store: LockStore, wall: Wall) -> None:
        """Rule 11."""
        pending = Claims(store, boot_time, SECONDS, wall)
        leases, deadline = pending._leases, boot_time() + SECONDS
        first = leases.take(60, 1, deadline)
        assert leases.take(60, KEYS_PER_LEASE - 1, deadline) is first
        assert leases.take(60, 1, deadline) is not first
        assert leases.take(65, 1, deadline) is not leases.take(60, 1, deadline)

    def test_limits(self, pending: Claims) -> None:
        first, second = (claim(pending, by=record(f"t{number}", limit=2)) for number in range(2))
        [third] = pending.claim_each([("a", record("t2", limit=2))], 60)
        assert isinstance(third, Conflict)
        assert [key.token for key in third.keys] == [first.token, second.token]

    def test_a_free_place_is_not_for_a_second_run_of_one_message(self, pending: Claims, manager: LockManager) -> None:
        """A copy of it, or a retry whose predecessor hasn't released: with a limit above one, too."""
        lock = manager.acquire("a", record(limit=3), ttl_seconds=30)
        assert isinstance(lock, Lock)
        retry = replace(record(limit=3), delivery=Delivery("t", retries=1))
        for again in (record(limit=3), retry):
            assert isinstance(manager.acquire("a", again, ttl_seconds=30), Conflict)
            assert isinstance(manager.acquire_all(AcquireRequest(("a", "b"), again, 30)), Conflict)
            assert isinstance(pending.claim_each([("a", again)], 60)[0], Conflict)
        other = manager.acquire("a", record("other", limit=3), ttl_seconds=30)
        assert isinstance(other, Lock)
        manager.release(lock)
        assert isinstance(manager.acquire("a", retry, ttl_seconds=30), Lock)

    def test_a_waiter_wakes_when_the_time_is_over(self, pending: Claims, manager: LockManager) -> None:
        claim(pending, seconds=0.5)
        started = time.monotonic()
        lock = manager.acquire("a", record("b"), ttl_seconds=30, wait_seconds=10)
        assert isinstance(lock, Lock)
        assert 1.0 < time.monotonic() - started < 5
        manager.release(lock)

    def test_all_or_none(self, pending: Claims, store: LockStore) -> None:
        taken = claim(pending, "b")
        outcomes = pending.claim_all([("a", record()), ("b", record())], 60)
        assert [type(outcome) for outcome in outcomes] == [Conflict, Conflict]
        assert keys(store, "a") == ()
        pending.drop(taken)
        assert [type(outcome) for outcome in pending.claim_all([("a", record()), ("b", record())], 60)] == [Claim] * 2


class TestChangingHands:
    def test_to_the_worker_and_away(self, pending: Claims, manager: LockManager, store: LockStore) -> None:
        mine = claim(pending)
        lock = take_over(manager, mine, record(), ttl_seconds=30)
        assert isinstance(lock, Lock)
        assert lock.fencing_token > mine.revision
        assert not pending.drop(mine), "what the message knows is worth nothing once a worker has it"
        assert keys(store) == (mine.token,)
        manager.release(lock)
        assert keys(store) == ()

    def test_a_place_in_line_is_one_until_a_worker_has_it(self, pending: Claims, manager: LockManager) -> None:
        def kinds() -> list[KeyKind]:
            return [key.record.kind for key in pending.look("a") if key.record is not None]

        place, _ = pending.take_position("a", record(), 60)
        assert kinds() == [KeyKind.POSITION]
        lock = take_over(manager, place, record(), ttl_seconds=30)
        assert isinstance(lock, Lock)
        assert kinds() == [KeyKind.HELD]
        manager.keep(lock, replace(lock.record, kind=KeyKind.LEAST_HOLD), 60)
        assert kinds() == [KeyKind.LEAST_HOLD]

    def test_only_one_of_two_copies_takes_over(self, pending: Claims, manager: LockManager) -> None:
        mine = claim(pending)
        lock = take_over(manager, mine, record(), ttl_seconds=30)
        assert isinstance(lock, Lock)
        copy = take_over(manager, mine, record(), ttl_seconds=30)
        assert isinstance(copy, Conflict)
        assert [key.mod_revision for key in copy.keys] == [lock.fencing_token]
        lock.check()
        manager.release(lock)

    def test_a_lock_taken_over_is_renewed_and_not_lost(self, pending: Claims, manager: LockManager) -> None:
        lock = take_over(manager, claim(pending), record(), ttl_seconds=2)
        assert isinstance(lock, Lock)
        manager._keeper.renew(lock.session)
        lock.check()
        manager.release(lock)

    def test_a_lock_is_left_for_the_successor(self, manager: LockManager, store: LockStore) -> None:
        lock = manager.acquire("a", record(), ttl_seconds=30)
        assert isinstance(lock, Lock)
        left = manager.keep(lock, record(), 60)
        assert left is not None
        assert keys(store) == (lock.token,)
        manager.release(lock)
        assert keys(store) == (lock.token,), "it isn't the holder's any more"
        assert isinstance(take_over(manager, left, record(), ttl_seconds=30), Lock)

    def test_the_newer_replaces_the_queued(self, pending: Claims, manager: LockManager, store: LockStore) -> None:
        """Rule 17."""
        older = claim(pending, by=record("older"))
        assert store.perform(LookForMark("older"), SECONDS) == MarkSeen(False)
        newer = pending.keep(older, record("newer"), 60, replaces="older")
        assert isinstance(newer, Claim)
        assert store.perform(LookForMark("older"), SECONDS) == MarkSeen(True)
        assert isinstance(take_over(manager, older, record("older"), ttl_seconds=30), Conflict)
        assert not pending.drop(older)
        lock = take_over(manager, newer, record("newer"), ttl_seconds=30)
        assert isinstance(lock, Lock)
        assert isinstance(pending.keep(newer, record("late"), 60, replaces="newer"), Conflict), "it runs already"
        assert store.perform(LookForMark("newer"), SECONDS) == MarkSeen(False)
        manager.release(lock)

    def test_a_newer_that_is_dropped_gives_its_place_back(self, pending: Claims, store: LockStore) -> None:
        """Else neither runs: its message was never published."""
        newer = pending.keep(claim(pending, by=record("older")), record("newer"), 60, replaces="older")
        assert isinstance(newer, Claim)
        assert pending.drop(newer)
        assert store.perform(LookForMark("older"), SECONDS) == MarkSeen(False)
        assert keys(store) == ()


class TestDoubt:
    """Requests without an answer (rule 3)."""

    @pytest.mark.parametrize("applied", [True, False])
    def test_a_claim_without_an_answer_is_found_or_made(self, store: LockStore, wall: Wall, applied: bool) -> None:
        losing = _Losing(store, applied=applied)
        pending = Claims(losing, boot_time, SECONDS, wall)
        mine = claim(pending)
        assert keys(store) == (mine.token,)
        assert pending.drop(mine)
        for late in losing.lost:
            assert not isinstance(store.perform(late, SECONDS), Owned | EachTried), "a late one takes effect"
        assert keys(store) == ()

    @pytest.mark.parametrize("kind", ["each", "all", "place"])
    def test_what_was_replaced_before_its_answer_came_isnt_found_as_ours(
        self, pending: Claims, store: LockStore, kind: str
    ) -> None:
        """The token is ours still, but the key is the newer call's: what it wrote isn't ours to drop."""
        session = Session(store)
        owned = store.perform(TryAcquire(session.lease, session.epoch, "a", "t", record("older")), SECONDS)
        assert isinstance(owned, Owned)
        newer = pending.keep(Claim("a", "t", owned.revision), record("newer"), 60, replaces="older")
        assert isinstance(newer, Claim)
        again = TryAcquire(session.lease, session.epoch, "a", "t", record("older"))
        if kind == "place":
            machine = TakePosition(
                lease=session.lease,
                epoch=session.epoch,
                name="a",
                token="t",
                record=record("older"),
                give_up_at=boot_time() + SECONDS,
                deadline=boot_time() + SECONDS,
            )
            placed = drive(machine, store, boot_time)
            assert isinstance(placed, PositionTaken)
            found = placed.mod_revision
        elif kind == "all":
            reply = store.perform(TryAll((again,)), SECONDS)
            assert isinstance(reply, Owned)
            found = reply.revision
        else:
            tried = store.perform(TryEach((again,)), SECONDS)
            assert isinstance(tried, EachTried)
            [outcome] = tried.outcomes
            assert isinstance(outcome, Owned)
            found = outcome.revision
        assert not pending.drop(Claim("a", "t", found))
        assert pending.drop(newer)

    @pytest.mark.parametrize("applied", [True, False])
    def test_a_take_over_without_an_answer(
        self, pending: Claims, new_store: Callable[[], LockStore], store: LockStore, applied: bool
    ) -> None:
        mine = claim(pending)
        losing = _Losing(new_store(), applied=applied)
        manager = LockManager(losing, new_store(), timeout_seconds=SECONDS)
        lock = take_over(manager, mine, record(), ttl_seconds=30)
        assert isinstance(lock, Lock)
        manager.release(lock)
        for late in losing.lost:
            assert not isinstance(store.perform(late, SECONDS), Owned)
        assert keys(store) == ()
        assert store.perform(Release("a", mine.token, lock.fencing_token), SECONDS) == NotHeld()
        manager.close()


class _Counting:
    def __init__(self, store: LockStore) -> None:
        self.store, self.operations = store, 0

    def perform(self, operation: object, timeout_seconds: float) -> object:
        self.operations += 1
        return self.store.perform(operation, timeout_seconds)  # type: ignore[arg-type]

    def close(self) -> None:
        pass


class _Losing:
    """Loses the answers to the first operations that write a key."""

    def __init__(self, store: LockStore, *, applied: bool, times: int = 1) -> None:
        self.store, self.applied, self.times = store, applied, times
        self.lost: list[object] = []

    def perform(self, operation: object, timeout_seconds: float) -> object:
        if self.times and type(operation).__name__ in {"TryEach", "Promote"}:
            self.times -= 1
            self.lost.append(operation)
            if self.applied:
                self.store.perform(operation, timeout_seconds)  # type: ignore[arg-type]
            raise LockUnavailable("lost", maybe_applied=True)
        if self.times and type(operation).__name__ == "FenceSession" and self.lost:
            raise LockUnavailable("lost", maybe_applied=True)
        return self.store.perform(operation, timeout_seconds)  # type: ignore[arg-type]

    def close(self) -> None:
        pass


def test_a_place_that_cannot_be_given_back_now_is_owed_and_ends_no_thread() -> None:
    """Nothing of it is deleted before: the older call would end for a newer one that never comes."""
    unanswered = LockUnavailable("on purpose", permanent=True)

    class Silent:
        def perform(self, operation: object, timeout_seconds: float) -> StoreReply:
            raise unanswered

        def close(self) -> None: ...

    releases = Releases()
    releases.schedule_delete(PendingDelete("a", "newer", 7, replaces="older"))
    assert not flush(releases, Silent(), boot_time, boot_time() + SECONDS)
    assert releases.pending_deletes()
