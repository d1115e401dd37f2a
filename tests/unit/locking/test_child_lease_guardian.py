"""The page on which children write their leases, and who looks after them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from celery_etcdlock.core.operations import (
    FenceSession,
    GrantLease,
    KeepAlive,
    StoreOperation,
)
from celery_etcdlock.core.protocol import Opened
from celery_etcdlock.locking.child_lease_guardian import FORGOTTEN_SECONDS, Guardian
from celery_etcdlock.locking.lease_page import LeasePage
from celery_etcdlock.locking.memory_store import MemoryStore
from celery_etcdlock.locking.session import Session
from tests.waiting import wait_for

TTL_SECONDS = 30


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Child:
    """A forked process that does one thing on the page, then waits to be ended.

    With ``tells`` it says itself when it has come so far.
    """

    def __init__(self, page: LeasePage, first: Callable[..., object], tells: bool = False) -> None:
        ready, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if tells:
                    first(lambda: os.write(tell, b"x"))
                first()
                os.write(tell, b"x")
                signal.pause()
            finally:
                os._exit(0)
        os.close(tell)
        assert os.read(ready, 1) == b"x"
        os.close(ready)
        self.reaped = False

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def reap(self) -> None:
        if not self.reaped:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.reaped = True


@pytest.fixture
def page() -> LeasePage:
    return LeasePage()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    store = MemoryStore(clock)
    store.perform(GrantLease(7, TTL_SECONDS), 1.0)
    store.perform(FenceSession(7), 1.0)
    return store


@pytest.fixture
def new_child(page: LeasePage) -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def make(first: Callable[..., object], tells: bool = False) -> Child:
        children.append(Child(page, first, tells))
        return children[-1]

    yield make
    for child in children:
        child.reap()


@pytest.fixture
def child(page: LeasePage, new_child: Callable[..., Child], clock: Clock) -> Child:
    return new_child(lambda: page.enter(7, TTL_SECONDS, clock.now + TTL_SECONDS))


@pytest.fixture
def guardian(page: LeasePage, store: MemoryStore, clock: Clock) -> Guardian:
    return Guardian(page, store, clock)


def lease_lives(store: MemoryStore) -> bool:
    return 7 in store._leases


def test_the_parents_own_leases_are_not_written_down(page: LeasePage) -> None:
    page.enter(7, TTL_SECONDS, 0.0)
    assert page.entries() == []


def test_a_lease_is_revoked_when_its_process_is_dead_and_not_before(
    child: Child, guardian: Guardian, page: LeasePage, store: MemoryStore
) -> None:
    guardian.look()
    assert lease_lives(store)
    child.kill()  # a zombie, not reaped yet
    guardian.look()
    assert not lease_lives(store)
    assert page.entries() == []
    assert os.waitpid(child.pid, 0)[0] == child.pid  # left for whoever reaps it
    child.reaped = True


def test_a_process_that_is_stopped_is_not_dead(child: Child, guardian: Guardian, store: MemoryStore) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    guardian.look()
    assert lease_lives(store)


def test_a_child_of_a_child_is_looked_after_too(
    page: LeasePage, new_child: Callable[..., Child], guardian: Guardian, store: MemoryStore, clock: Clock
) -> None:
    def fork_again() -> None:
        pid = os.fork()
        if pid == 0:
            os.close(hold)
            page.enter(7, TTL_SECONDS, clock.now + TTL_SECONDS)
            os.read(gate, 1)
            os._exit(0)
        os.close(gate)
        os.close(hold)

    gate, hold = os.pipe()
    new_child(fork_again)
    os.close(gate)
    wait_for(page.entries, "the grandchild has written its lease")
    guardian.look()
    assert lease_lives(store)
    os.close(hold)  # the grandchild ends


def test_what_a_child_takes_back_is_let_alone(
    page: LeasePage, new_child: Callable[..., Child], guardian: Guardian, store: MemoryStore
) -> None:
    def enter_and_leave() -> None:
        page.enter(7, TTL_SECONDS, 0.0)
        page.leave(7)

    child = new_child(enter_and_leave)
    child.kill()
    guardian.look()
    assert lease_lives(store)


def test_many_children_write_at_once(page: LeasePage, new_child: Callable[..., Child]) -> None:
    def enter_some() -> None:
        for number in range(20):
            page.enter(os.getpid() * 100 + number, TTL_SECONDS, 1.0)

    children = [new_child(enter_some) for _ in range(8)]
    wanted = {(child.pid, child.pid * 100 + number) for child in children for number in range(20)}
    assert {(entry.pid, entry.lease) for entry in page.entries()} == wanted


def test_one_process_writes_at_a_time_and_a_dead_one_holds_nobody_up(
    page: LeasePage, new_child: Callable[..., Child], child: Child
) -> None:
    def write_for_ever(tell: Callable[[], None]) -> None:
        def change() -> None:
            tell()
            signal.pause()

        page._exclusively(change)

    writer = new_child(write_for_ever, tells=True)
    page.remove(child.pid, 7)
    assert len(page.entries()) == 1
    writer.kill()
    page.remove(child.pid, 7)
    assert page.entries() == []


def test_a_full_page_costs_no_more_than_the_entry(page: LeasePage, new_child: Callable[..., Child]) -> None:
    def enter_too_many() -> None:
        for number in range(3000):
            page.enter(number + 1, TTL_SECONDS, 1.0)

    new_child(enter_too_many)
    assert 1000 < len(page.entries()) < 3000


def test_a_child_that_is_late_is_renewed_for_and_may_trust_its_lock_longer(
    page: LeasePage, new_child: Callable[..., Child], store: MemoryStore, clock: Clock
) -> None:
    performed: list[StoreOperation] = []

    class Watched:
        def perform(self, operation: StoreOperation, timeout_seconds: float) -> object:
            performed.append(operation)
            return store.perform(operation, timeout_seconds)

        def close(self) -> None: ...

    guardian = Guardian(page, Watched(), clock)  # type: ignore[arg-type]
    told, tell = os.pipe()

    def hold_a_session() -> None:
        page.enter(7, TTL_SECONDS, clock.now + TTL_SECONDS)
        later = Clock()
        session = Session(7, Opened(1, TTL_SECONDS, clock.now + TTL_SECONDS, clock.now, term=1), later, page)

        def report(number: int, frame: object) -> None:
            later.now = clock.now + TTL_SECONDS + 1
            os.write(tell, b"trusted" if session.lost_reason() is None else b"lost")
            later.now = clock.now + 2 * TTL_SECONDS
            os.write(tell, b" trusted" if session.lost_reason() is None else b" lost")

        signal.signal(signal.SIGUSR1, report)

    child = new_child(hold_a_session)
    started = clock.now
    guardian.look()
    assert performed == []
    clock.now = started + TTL_SECONDS * 0.6
    guardian.look()
    assert KeepAlive(7) in performed
    [entry] = page.entries()
    assert entry.guardian_deadline > started + TTL_SECONDS * 1.5
    performed.clear()
    guardian.look()
    assert performed == []
    clock.now = started
    os.kill(child.pid, signal.SIGUSR1)
    answer = b""
    while not answer.endswith(b" lost") and not answer.endswith(b" trusted"):
        answer += os.read(told, 100)
    assert answer == b"trusted lost"


def test_nobody_renews_for_a_child_that_is_stopped(
    child: Child, guardian: Guardian, page: LeasePage, store: MemoryStore, clock: Clock
) -> None:
    ends_at = store._leases[7].ends_at
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    clock.now += TTL_SECONDS * 0.6
    guardian.look()
    assert [entry.guardian_deadline for entry in page.entries()] == [0.0]
    assert store._leases[7].ends_at == ends_at


def test_nobody_renews_past_the_deadline(child: Child, guardian: Guardian, page: LeasePage, clock: Clock) -> None:
    """The child knows by then that its lock is lost."""
    clock.now += TTL_SECONDS + 1
    guardian.look()
    assert [entry.guardian_deadline for entry in page.entries()] == [0.0]


def test_what_nobody_can_mean_any_more_is_cleared(
    child: Child, guardian: Guardian, page: LeasePage, clock: Clock
) -> None:
    clock.now += 2 * TTL_SECONDS + FORGOTTEN_SECONDS + 1
    guardian.look()
    assert page.entries() == []
