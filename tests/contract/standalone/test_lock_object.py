"""``EtcdLocks.lock``: what threads that hold, share, lose, cancel and drop a lock can rely on."""

from __future__ import annotations

import copy
import gc
import logging
import os
import pickle
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from celery_etcdlock import EtcdLock, EtcdLockError, EtcdLocks, HeldLock, LockConflict, LockLost, NotLocked
from celery_etcdlock.core.record import Delivery
from tests.contract.standalone.conftest import lose
from tests.waiting import wait_for


class Stopped(BaseException):
    """What a time limit or a gevent.Timeout raises, and no except Exception catches."""


def in_thread(work: Callable[[], Any]) -> Any:
    """What ``work`` returns or raises, in a thread of its own."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert outcome, "the thread still runs"
    return outcome[0]


def waiters(locks: EtcdLocks, name: str) -> int:
    """Places under the name besides the first."""
    return max(0, len(locks.holders(name)) - 1)


class TestAcquireAndRelease:
    def test_what_a_caller_sees_in_each_state(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        lock, other = locks.lock("a", note="nightly import"), others.lock("a")
        assert (lock.locked(), lock.owned(), lock.remaining, lock.lost, lock.holder) == (False, False, 0.0, True, None)
        for needs_it in (lock.check, lock.release, lambda: lock.fencing_token, lambda: lock.held):
            with pytest.raises(NotLocked, match="isn't held by this thread: it was never acquired"):
                needs_it()
        assert lock.acquire()
        assert (lock.locked(), lock.owned(), lock.lost) == (True, True, False)
        assert (other.locked(), other.owned()) == (True, False)
        lock.check()
        assert 0 < lock.remaining < 30
        assert lock.fencing_token == lock.held.fencing_token > 0
        holder = other.holder
        assert holder is not None
        assert (holder.what, holder.task_id, holder.pid) == ("nightly import", None, os.getpid())
        assert "nightly import" in str(holder)
        assert not other.acquire(blocking=False)
        assert not other.acquire(timeout=0)
        lock.release()
        assert (lock.locked(), lock.owned(), lock.remaining) == (False, False, 0.0)
        with pytest.raises(NotLocked, match="released already"):
            lock.release()
        assert other.acquire()
        other.release()

    def test_a_conflict_is_false_from_acquire_and_an_error_from_with(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        with locks.lock("a"):
            assert not others.lock("a", wait_timeout=0.05).acquire()
            with pytest.raises(LockConflict, match="is held by pid"), others.lock("a"):
                pytest.fail("the block runs")
        assert not locks.holders("a")

    def test_for_ever_is_until_it_is_free(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        with locks.lock("a"):
            lock = others.lock("a", wait_timeout=None)
            got: list[bool] = []
            waits = threading.Thread(target=lambda: (got.append(lock.acquire()), lock.release()))
            waits.start()
            wait_for(lambda: waiters(locks, "a"), "it waits")
        waits.join(60)
        assert got == [True]

    def test_acquiring_twice_is_an_error_and_not_a_deadlock(self, locks: EtcdLocks) -> None:
        lock = locks.lock("a", wait_timeout=None)
        with lock:
            with pytest.raises(EtcdLockError, match=r"this thread holds it already \(acquired at .*test_lock_object"):
                lock.acquire()
            with pytest.raises(EtcdLockError, match="It isn't reentrant"), lock:
                pytest.fail("the block runs")
            assert lock.owned()
        assert not locks.holders("a")

    def test_a_block_may_release_early_and_acquire_anew(self, locks: EtcdLocks) -> None:
        lock = locks.lock("a")
        with lock as held:
            lock.release()
            assert held.lost
            assert not locks.holders("a")
            assert lock.acquire()
            assert held.lost, "the first holding stays released"
        assert not locks.holders("a")
        with pytest.raises(NotLocked, match="released inside of its block"), lock:
            lock.release()

    def test_a_semaphore(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        first, second, third = (each.lock("a", limit=2) for each in (locks, others, locks))
        with first, second:
            assert not third.acquire()
        assert third.acquire()
        third.release()

    def test_several_names_are_all_or_none(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        both = locks.lock(["a", "b"], wait_timeout=30)
        with both as held:
            assert held.name == "a, b"
            assert not others.lock("a").acquire()
            assert not others.lock("b").acquire()
        with others.lock("b") as in_the_way:
            assert not both.acquire(timeout=0)
            assert not locks.holders("a")
            got: list[int] = []

            def waits() -> None:
                with both as held:
                    got.append(held.fencing_token)

            thread = threading.Thread(target=waits)
            thread.start()
        thread.join(60)
        assert got
        assert got[0] > in_the_way.fencing_token
        assert not locks.holders("a")
        assert not locks.holders("b")

    def test_a_name_of_any_length(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        with locks.lock("x" * 10_000):
            assert not others.lock("x" * 10_000).acquire()
            assert others.lock("x" * 9_999).locked() is False


class TestTrust:
    """Nothing vouches for a lock that isn't held any more, in whoever's hands it is."""

    def test_a_released_one(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        with locks.lock("a") as held:
            held.check()
        with others.lock("a") as theirs:
            assert theirs.fencing_token > held.fencing_token
            assert (held.lost, held.remaining, held.lost_reason) == (True, 0.0, "it was released")
            with pytest.raises(LockLost, match="it was released"):
                held.check()
            theirs.check()

    def test_a_lost_block_ends_with_the_loss(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        lock = locks.lock("a")
        with pytest.raises(LockLost, match="its key was deleted"), lock as held:  # noqa: PT012 - it is the block's end
            lose(locks, held)
            assert (lock.owned(), lock.lost, lock.remaining) == (False, True, 0.0)
            with others.lock("a") as theirs:
                with pytest.raises(LockLost):
                    lock.check()
                theirs.check()
        with lock:  # and it may be acquired anew
            assert lock.owned()

    def test_a_loss_that_the_renewal_has_not_seen_ends_the_block_all_the_same(self, locks: EtcdLocks) -> None:
        lock = locks.lock("a")
        with pytest.raises(LockLost, match="its key was gone when it was released"), lock as held:  # noqa: PT012
            for key in locks.holders("a"):
                locks.manager.claims.drop(claim_of(held, key.mod_revision))

    def test_an_exception_in_a_lost_block_keeps_its_place(
        self, locks: EtcdLocks, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(ZeroDivisionError) as caught, locks.lock("a") as held:  # noqa: PT012
            lose(locks, held)
            _ = 1 / 0
        if sys.version_info >= (3, 11):
            assert "lock 'a' is lost" in caught.value.__notes__[0]
        assert "while ZeroDivisionError ended its block" in caplog.text

    def test_release_tells_of_a_loss(self, locks: EtcdLocks) -> None:
        lock = locks.lock("a")
        assert lock.acquire()
        lose(locks, lock.held)
        with pytest.raises(LockLost):
            lock.release()
        with pytest.raises(NotLocked):
            lock.release()

    def test_one_that_an_operator_asked_for_was_ours_to_the_end(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        lock = locks.lock("a")
        with lock as held:
            others.manager.ask_to_release("a", others.holders("a")[0], "an operator")
            locks.manager._keeper.renew(held.locks[0].session)
            with pytest.raises(LockLost, match="an operator asked its holder"):
                lock.check()
            assert not others.lock("a").acquire()
        assert others.lock("a").acquire()

    def test_who_is_told_of_a_loss(self, locks: EtcdLocks) -> None:
        told: list[tuple[HeldLock, str]] = []
        lock = locks.lock("a", on_lost=lambda held: told.append((held, threading.current_thread().name)))
        with pytest.raises(LockLost), lock as held:  # noqa: PT012
            lose(locks, held)
            wait_for(lambda: told, "on_lost is called")
        assert (told[0][0].fencing_token, told[0][1]) == (held.fencing_token, "celery-etcdlock-renewal")
        with lock:
            pass
        assert len(told) == 1

    def test_it_can_not_be_copied(self, locks: EtcdLocks) -> None:
        lock = locks.lock("a")
        with lock as held:
            for copied in (lock, held, held.locks[0]):
                for way in (pickle.dumps, copy.copy, copy.deepcopy):
                    with pytest.raises(TypeError, match="can't be pickled or copied"):
                        way(copied)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_forked_child_has_nothing(self, locks: EtcdLocks) -> None:
        lock = locks.lock("a")
        left = locks.lock("b")
        with lock as held:
            left.__enter__()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    logging.disable(logging.CRITICAL)
                    assert (lock.owned(), lock.remaining, held.lost, held.remaining) == (False, 0.0, True, 0.0)
                    for vouch, error in ((held.check, LockLost), (lock.check, NotLocked), (lock.release, NotLocked)):
                        with pytest.raises(error, match="fork"):
                            vouch()
                    with pytest.raises(LockLost, match="fork"):
                        left.__exit__(None, None, None)
                    del left
                    gc.collect()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            held.check()
            assert locks.holders("a")
            assert locks.holders("b")
        left.__exit__(None, None, None)
        assert not locks.holders("b")


def claim_of(held: HeldLock, revision: int) -> Any:
    from celery_etcdlock.locking.outcomes import Claim

    (lock,) = held.locks
    return Claim(lock.name, lock.token, revision)


class TestSharing:
    """One object, any number of threads."""

    def test_each_waits_for_its_turn_in_order_with_one_place_in_line(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        lock = locks.lock("a", wait_timeout=60)
        order: list[int] = []
        most_places = 0

        def work(number: int) -> None:
            nonlocal most_places
            with lock:
                most_places = max(most_places, len(others.holders("a")))
                order.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        with lock:
            for number, thread in enumerate(threads):
                thread.start()
                wait_for(lambda: locks.access().local_waiters.queued(["a"]) == number + 1, "it waits")  # noqa: B023
            wait_for(lambda: waiters(others, "a"), "the first of them is in line")
            assert waiters(others, "a") == 1
        for thread in threads:
            thread.join(60)
        assert order == list(range(16))
        assert most_places <= 2
        assert not locks.holders("a")

    def test_what_a_waiter_does_never_touches_what_another_holds(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        lock = locks.lock("a", wait_timeout=60)
        with lock as held:
            seen = in_thread(lambda: (lock.owned(), lock.remaining, lock.lost))
            assert seen == (False, 0.0, True)
            for forbidden in (lock.release, lock.check):
                assert isinstance(in_thread(forbidden), NotLocked)
            assert in_thread(lambda: lock.acquire(timeout=0.05)) is False
            interrupted = in_thread(lambda: interrupted_wait(lock))
            assert isinstance(interrupted, Stopped)
            held.check()
            assert [key.token for key in others.holders("a")] == [held.locks[0].token]
            assert not others.lock("a").acquire()
        assert not locks.holders("a")

    def test_helpers_may_have_the_holding(self, locks: EtcdLocks) -> None:
        with locks.lock("a") as held:
            assert in_thread(held.check) is None
            assert in_thread(lambda: held.fencing_token) == held.fencing_token
        assert isinstance(in_thread(held.check), LockLost)

    def test_a_block_is_left_by_whoever_leaves_it(self, locks: EtcdLocks) -> None:
        """As web frameworks do, which enter and leave a generator in threads of a pool."""
        lock = locks.lock("a", limit=3)

        @contextmanager
        def in_block() -> Any:
            with lock as held:
                yield held

        first, second = in_block(), in_block()
        with lock as mine:
            one = in_thread(first.__enter__)
            other = in_thread(second.__enter__)
            in_thread(lambda: second.__exit__(None, None, None))
            assert (mine.lost, one.lost, other.lost) == (False, False, True)
            first.__exit__(None, None, None)
            assert (mine.lost, one.lost) == (False, True)
        stack = ExitStack()
        entered = stack.enter_context(lock)
        in_thread(stack.close)
        assert entered.lost
        assert not locks.holders("a")


def interrupted_wait(lock: EtcdLock) -> None:
    """Its wait ends as a time limit ends it: by an exception out of whatever it waits for."""
    local_waiters = lock._home.access().local_waiters
    before = local_waiters._is_first

    def struck(*_: Any) -> bool:
        raise Stopped

    local_waiters._is_first = struck  # type: ignore[method-assign]
    try:
        lock.acquire()
    finally:
        local_waiters._is_first = before  # type: ignore[method-assign]


def test_an_interrupted_wait_leaves_no_place_in_line(locks: EtcdLocks, others: EtcdLocks) -> None:
    """As ctrl-C, or a time limit's signal."""

    def strike(*_: Any) -> None:
        raise Stopped

    def strike_when_it_waits() -> None:
        wait_for(lambda: waiters(locks, "a"), "it waits")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, strike)
    try:
        with others.lock("a"):
            helper = threading.Thread(target=strike_when_it_waits)
            helper.start()
            with pytest.raises(Stopped):
                locks.lock("a", wait_timeout=60).acquire()
            helper.join(60)
            wait_for(lambda: not waiters(locks, "a"), "no place is left in line")
    finally:
        signal.signal(signal.SIGUSR1, before)


class TestCancel:
    def test_all_who_wait_for_the_object_give_up(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        lock = locks.lock("a", wait_timeout=None)
        ended: list[Any] = []

        def acquires() -> None:
            ended.append(lock.acquire())

        def enters() -> None:
            try:
                with lock:
                    ended.append("entered")
            except LockConflict as error:
                ended.append(type(error))

        with others.lock("a") as held:
            threads = [threading.Thread(target=work) for work in (acquires, acquires, enters)]
            for thread in threads:
                thread.start()
            wait_for(lambda: len(lock._waiting) == 3 and waiters(locks, "a") == 1, "they wait")
            lock.cancel()
            for thread in threads:
                thread.join(60)
            assert sorted(map(str, ended)) == sorted(map(str, [False, False, LockConflict]))
            wait_for(lambda: not waiters(locks, "a"), "no place is left in line")
            held.check()
            assert not lock.acquire(timeout=0)
        assert lock.acquire(), "and it may be acquired later"
        lock.release()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
class TestDropped:
    def test_the_object(self, locks: EtcdLocks, caplog: pytest.LogCaptureFixture) -> None:
        lock = locks.lock("a")
        assert lock.acquire()
        with pytest.warns(ResourceWarning, match=r"lock 'a': its lock object was dropped.*test_lock_obj"):  # noqa: PT031
            del lock
            gc.collect()
        wait_for(lambda: not locks.holders("a"), "it is released")
        assert "lock 'a' is released now: its lock object was dropped while it held it" in caplog.text

    def test_what_is_still_used_is_not_dropped(self, locks: EtcdLocks) -> None:
        held = locks.lock("a").__enter__()
        gc.collect()
        held.check()
        assert locks.holders("a")
        del held
        gc.collect()
        wait_for(lambda: not locks.holders("a"), "it is released")

    def test_the_thread(self, locks: EtcdLocks) -> None:
        lock = locks.lock("a")
        with pytest.warns(ResourceWarning, match="a thread ended that held it"):  # noqa: PT031
            assert in_thread(lock.acquire)
            gc.collect()
        wait_for(lambda: not locks.holders("a"), "it is released")
        assert lock.acquire(), "another thread, maybe of the same number, holds nothing of it"
        lock.release()

    def test_the_thread_that_has_several(self, locks: EtcdLocks, caplog: pytest.LogCaptureFixture) -> None:
        objects = [locks.lock(name) for name in "abc"]

        def acquires_all_and_releases_one() -> None:
            for lock in objects:
                assert lock.acquire()
            objects[1].release()

        with pytest.warns(ResourceWarning, match="a thread ended that held it"):  # noqa: PT031
            in_thread(acquires_all_and_releases_one)
            gc.collect()
        wait_for(lambda: not any(locks.holders(name) for name in "abc"), "they are released")
        assert caplog.text.count("a thread ended that held it") == 2

    def test_a_thread_that_goes_on_keeps_no_more_than_what_it_holds(self, locks: EtcdLocks) -> None:
        holdings = []
        for _ in range(5):
            lock = locks.lock("a")
            assert lock.acquire()
            holdings.append(weakref.ref(lock._mine()))
            lock.release()
        del lock
        gc.collect()
        assert sum(holding() is not None for holding in holdings) <= 1

    def test_a_released_one_is_silent(self, locks: EtcdLocks, recwarn: pytest.WarningsRecorder) -> None:
        lock = locks.lock("a")
        with lock:
            pass

        def elsewhere(lock: EtcdLock = lock) -> None:
            assert lock.acquire()
            lock.release()

        assert in_thread(elsewhere) is None
        elsewhere.__defaults__ = ()
        del lock
        gc.collect()
        assert not [each for each in recwarn if issubclass(each.category, ResourceWarning) and "lock" in str(each)]


def test_the_key_in_etcd(locks: EtcdLocks) -> None:
    with locks.lock("a") as held:
        if locks.settings.endpoints == ("memory://",):
            with pytest.raises(EtcdLockError, match="have no key in an etcd"):
                _ = held.key
            return
        (key,) = locks.holders("a")
        assert held.key == f"{locks.settings.prefix}v1/a/{key.token}".encode()
        assert held.fencing_token == key.mod_revision
    with locks.lock(["a", "b"]) as both, pytest.raises(EtcdLockError, match="a lock for each name"):
        _ = both.key


def test_a_closed_app_opens_anew(locks: EtcdLocks) -> None:
    lock = locks.lock("after")
    with lock:
        pass
    locks.close()
    with lock:
        assert lock.owned()


def test_a_record_says_so(locks: EtcdLocks) -> None:
    with locks.lock("a", limit=3, note="by hand"):
        (key,) = locks.holders("a")
        assert key.record is not None
        assert (key.record.task, key.record.limit) == ("by hand", 3)
        assert key.record.delivery == Delivery(f"no task, pid {os.getpid()}")


class TestWrongArguments:
    @pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "5", True])
    def test_time_outs(self, locks: EtcdLocks, timeout: Any) -> None:
        with pytest.raises(ValueError, match=r"^timeout must be a finite number of seconds"):
            locks.lock("a").acquire(timeout=timeout)
        with pytest.raises(ValueError, match=r"^wait_timeout must be a finite number of seconds"):
            locks.lock("a", wait_timeout=timeout)

    @pytest.mark.parametrize("name", ["", 7, None, [], ["a", ""], ["a", 3], b"a"])
    def test_names(self, locks: EtcdLocks, name: Any) -> None:
        with pytest.raises(ValueError, match="name must be a non-empty str, or a list of them"):
            locks.lock(name)

    def test_the_rest(self, locks: EtcdLocks) -> None:
        for wrong, message in [
            ({"name": ["a", "a"]}, "has one of them twice"),
            ({"limit": 0}, "limit must be a whole number"),
            ({"note": ""}, "note must be"),
            ({"lock_ttl": 1}, "lock_ttl must be"),
            ({"lock_ttl": 10**10}, "lock_ttl must be at most 9000000000 seconds"),
            ({"lock_ttl": True}, "lock_ttl must be a whole number of seconds"),
            ({"limit": True}, "limit must be a whole number"),
            ({"on_lost": 3}, "on_lost must be"),
        ]:
            with pytest.raises(ValueError, match=message):
                locks.lock(**{"name": "a"} | wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="leave one out"):
            locks.lock("a").acquire(blocking=False, timeout=1)
        with pytest.raises(ValueError, match=r"acquire\(timeout=5\)"):
            locks.lock("a").acquire(5)  # type: ignore[arg-type]
