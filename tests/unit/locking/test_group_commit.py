"""Group commit over a store whose calls the test holds up, so that what comes meanwhile is certain."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from celery_etcdlock.core.operations import (
    Look,
    PlaceOperation,
    Release,
    StoreOperation,
)
from celery_etcdlock.core.replies import (
    Present,
    Released,
    StoreReply,
)
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking import group_commit
from celery_etcdlock.locking.group_commit import GroupCommit
from tests.waiting import wait_for


class Interrupted(BaseException):
    """Stands for a time limit's signal."""


class HeldUp:
    """Answers a call when the test lets it go. ``calls`` are the names in each, in the order in which they came."""

    def __init__(self, most_together: int = 64) -> None:
        self.most_together = most_together
        self.calls: list[tuple[str, ...]] = []
        self.fail: dict[int, BaseException] = {}
        self._gates: dict[int, threading.Event] = {}
        self._free = False

    def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        if isinstance(operation, Look):
            return Present((), 1)
        assert isinstance(operation, Release)
        self._call((operation.name,))
        return Released()

    def perform_together(self, operations: Sequence[PlaceOperation], timeout_seconds: float) -> list[StoreReply]:
        names = tuple(operation.name for operation in operations)
        assert len(set(names)) == len(names) <= self.most_together
        self._call(names)
        return [Released() for _ in operations]

    def close(self) -> None:
        pass

    def _call(self, names: tuple[str, ...]) -> None:
        number = len(self.calls)
        gate = self._gates.setdefault(number, threading.Event())
        self.calls.append(names)
        if self._free:
            time.sleep(0)  # lets the others in, as a call on a network does
        else:
            assert gate.wait(60)
        if number in self.fail:
            raise self.fail[number]

    def let_go(self, number: int) -> None:
        wait_for(lambda: len(self.calls) > number, f"call {number} has come")
        self._gates[number].set()

    def free(self) -> None:
        self._free = True
        for gate in list(self._gates.values()):
            gate.set()


class Callers:
    """Threads that each perform one operation."""

    def __init__(self, store: HeldUp) -> None:
        self.store = store
        self.shared = GroupCommit(store)
        self.pool = ThreadPoolExecutor(100)

    def ask(self, name: str, seconds: float = 20.0) -> Future[StoreReply]:
        return self.pool.submit(self.shared.perform, Release(name, "token", 1), seconds)

    def queue(self, *names: str, seconds: float = 20.0) -> list[Future[StoreReply]]:
        """One after the other, each when the one before stands in the queue."""
        asked = []
        for name in names:
            asked.append(self.ask(name, seconds))
            wait_for(lambda name=name: name in self.shared._queue, f"{name} is queued")  # type: ignore[misc]
        return asked

    def busy(self, name: str = "first") -> Future[StoreReply]:
        asked = self.ask(name)
        wait_for(lambda: self.store.calls, "the first call is under way")
        return asked


@pytest.fixture
def new_callers() -> Iterator[Callable[..., Callers]]:
    made: list[Callers] = []

    def make(most_together: int = 64) -> Callers:
        made.append(Callers(HeldUp(most_together)))
        return made[-1]

    yield make
    for callers in made:
        callers.store.free()
        callers.pool.shutdown()


@pytest.fixture
def callers(new_callers: Callable[..., Callers]) -> Callers:
    return new_callers()


def test_who_comes_during_a_call_shares_the_next(callers: Callers) -> None:
    first = callers.busy()
    others = callers.queue("a", "b", "c")
    callers.store.let_go(0)
    callers.store.let_go(1)
    assert [asked.result(20) for asked in (first, *others)] == [Released()] * 4
    assert callers.store.calls == [("first",), ("a", "b", "c")]
    assert callers.shared._leader is None


def test_a_lone_caller_goes_at_once_and_as_before(callers: Callers) -> None:
    callers.store.free()
    for name in ("a", "b"):
        assert callers.ask(name).result(20) == Released()
    assert callers.store.calls == [("a",), ("b",)]


def test_an_operation_on_a_queued_name_goes_alone(callers: Callers) -> None:
    callers.busy()
    callers.queue("a")
    callers.ask("a")
    wait_for(lambda: len(callers.store.calls) == 2, "the second goes at once")
    assert callers.store.calls == [("first",), ("a",)]


def test_a_leader_doesnt_take_along_its_own_name(callers: Callers) -> None:
    """Between its choice and its call another operation on that name may be queued."""
    first = callers.busy("a")
    same, other = callers.queue("a", "b")
    leader = callers.shared._leader
    assert leader is not None
    callers.shared._take_along(leader)
    assert [one.operation.name for one in leader.taken] == ["b"]
    callers.store.free()
    assert first.result(20) == same.result(20) == other.result(20) == Released()


def test_no_more_go_together_than_the_store_takes(new_callers: Callable[..., Callers]) -> None:
    callers = new_callers(most_together=2)
    callers.busy()
    asked = callers.queue("a", "b", "c")
    callers.store.free()
    assert [one.result(20) for one in asked] == [Released()] * 3
    assert callers.store.calls == [("first",), ("a", "b"), ("c",)]


def test_a_call_that_is_refused_as_a_whole_is_repeated_one_by_one(callers: Callers) -> None:
    callers.busy()
    asked = callers.queue("a", "b", "c")
    callers.store.fail[1] = LockUnavailable("permission denied for b", permanent=True)
    callers.store.free()
    assert [one.result(20) for one in asked] == [Released()] * 3
    assert callers.store.calls[1] == ("a", "b", "c")
    assert sorted(callers.store.calls[2:]) == [("a",), ("b",), ("c",)]


def test_a_lost_answer_is_lost_for_everybody_in_the_call(callers: Callers) -> None:
    callers.busy()
    asked = callers.queue("a", "b")
    callers.store.fail[1] = LockUnavailable("the connection broke", maybe_applied=True)
    callers.store.free()
    for one in asked:
        error = one.exception(20)
        assert isinstance(error, LockUnavailable)
        assert error.maybe_applied
        assert "the connection broke" in str(error)
    assert len(callers.store.calls) == 2


def test_who_is_queued_when_its_time_is_over_never_asked(callers: Callers) -> None:
    callers.busy()
    (asked,) = callers.queue("a", seconds=0.05)
    error = asked.exception(20)
    assert isinstance(error, LockUnavailable)
    assert not error.maybe_applied
    callers.store.free()
    assert callers.ask("a").result(20) == Released()
    assert callers.store.calls == [("first",), ("a",)]


def test_who_was_taken_along_when_its_time_is_over_may_have_asked(callers: Callers) -> None:
    callers.busy()
    callers.queue("a")
    (asked,) = callers.queue("b", seconds=0.3)
    callers.store.let_go(0)
    wait_for(lambda: len(callers.store.calls) == 2, "both are under way")
    error = asked.exception(20)
    assert isinstance(error, LockUnavailable)
    assert error.maybe_applied


def test_a_leader_that_is_interrupted_hands_over(callers: Callers) -> None:
    first = callers.busy()
    asked = callers.queue("a", "b")
    callers.store.fail[0] = Interrupted()
    callers.store.fail[1] = Interrupted()
    callers.store.let_go(0)
    callers.store.let_go(1)
    assert isinstance(first.exception(20), Interrupted)
    assert isinstance(asked[0].exception(20), Interrupted)
    error = asked[1].exception(20)
    assert isinstance(error, LockUnavailable)
    assert error.maybe_applied
    callers.store.free()
    assert callers.ask("c").result(20) == Released()


def test_a_leader_that_died_without_a_word_is_replaced(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "GRACE_SECONDS", 0.01)
    dead = group_commit.Entry(Release("dead", "token", 1), time.monotonic() + 0.05)
    callers.shared._leader = dead
    callers.store.free()
    assert [callers.ask(name).result(20) for name in ("a", "b")] == [Released()] * 2
    assert callers.shared._leader is None


def test_other_operations_pass_by(callers: Callers) -> None:
    callers.busy()
    assert callers.shared.perform(Look("a"), 1.0) == Present((), 1)


def test_nobody_is_forgotten(new_callers: Callable[..., Callers]) -> None:
    callers = new_callers(most_together=7)
    callers.store.free()
    asked = [callers.ask(f"name {number % 40}") for number in range(2000)]
    assert all(one.result(20) == Released() for one in asked)
    assert sum(len(names) for names in callers.store.calls) == 2000
    assert callers.shared._leader is None
    assert not callers.shared._queue
