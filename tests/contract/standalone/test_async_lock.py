"""``EtcdLocks.alock``: the same for asyncio, where nothing may hold up the loop."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from celery_etcdlock import EtcdLockError, EtcdLocks, LockConflict, LockLost, NotLocked
from celery_etcdlock.core.operations import GrantLease
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.loop_store_access import THREADS
from celery_etcdlock.locking.session import Session
from tests.contract.standalone.conftest import lose
from tests.waiting import wait_for


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def soon(probe: Any, what: str) -> None:
    deadline = time.monotonic() + 20
    while not await asyncio.to_thread(probe):
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.01)


def waiters(locks: EtcdLocks, name: str) -> int:
    return max(0, len(locks.holders(name)) - 1)


def test_acquire_release_and_what_a_task_sees(locks: EtcdLocks, others: EtcdLocks) -> None:
    async def work() -> None:
        lock, other = locks.alock("a", note="an import"), others.alock("a")
        assert not await lock.locked()
        assert await lock.acquire()
        assert (lock.owned(), await other.locked(), other.owned()) == (True, True, False)
        holder = await other.holder()
        assert holder is not None
        assert holder.what == "an import"
        assert not await other.acquire(timeout=0)
        lock.check()
        with pytest.raises(EtcdLockError, match="this task holds it already"):
            await lock.acquire()
        seen = await asyncio.create_task(as_another_task(lock))
        assert seen == (False, 0.0)
        await lock.release()
        with pytest.raises(NotLocked):
            await lock.release()
        async with other as held:
            held.check()
            with pytest.raises(LockConflict):
                async with lock:
                    pytest.fail("the block runs")
        assert held.lost
        assert await lock.holder() is None

    async def as_another_task(lock: Any) -> tuple[bool, float]:
        with pytest.raises(NotLocked, match="isn't held by this task, but by another one"):
            await lock.release()
        return lock.owned(), lock.remaining

    run(work())


def test_it_competes_with_threads(locks: EtcdLocks) -> None:
    async def work() -> None:
        async with locks.alock("a"):
            assert not await asyncio.to_thread(locks.lock("a").acquire)
        with locks.lock("a"):
            assert not await locks.alock("a").acquire()

    run(work())


def test_a_lost_block_ends_with_the_loss_and_tells_in_the_loop(locks: EtcdLocks) -> None:
    async def work() -> None:
        told: list[str] = []
        lock = locks.alock("a", on_lost=lambda held: told.append(threading.current_thread().name))
        with pytest.raises(LockLost):  # noqa: PT012 - it is the block's end
            async with lock as held:
                await asyncio.to_thread(lose, locks, held)
                await soon(lambda: told, "on_lost is called")
                assert not lock.owned()
        assert told == [threading.current_thread().name]

    run(work())


def test_many_wait_in_order_in_few_threads_with_one_place_in_line(locks: EtcdLocks, others: EtcdLocks) -> None:
    async def work() -> None:
        lock = locks.alock("a", wait_timeout=None)
        order: list[int] = []

        async def one(number: int) -> None:
            async with lock:
                order.append(number)

        before = threading.active_count()
        locks.access()
        async with others.alock("a"):
            tasks = [asyncio.create_task(one(number)) for number in range(100)]
            await soon(lambda: len(lock._waiting) == 100 and waiters(others, "a"), "they wait")
            assert waiters(others, "a") == 1
            # Those of to_thread, the renewal's and the watch's besides.
            assert threading.active_count() <= before + 2 * THREADS + 8
        await asyncio.gather(*tasks)
        assert order == list(range(100))

    run(work())
    assert not locks.holders("a")


def test_many_wait_for_many_names_in_few_threads(locks: EtcdLocks, others: EtcdLocks) -> None:
    names = [f"n{number}" for number in range(40)]

    async def work() -> None:
        holders = [others.lock(name) for name in names]
        for holder in holders:
            assert holder.acquire()

        async def one(name: str) -> str:
            async with locks.alock(name, wait_timeout=None):
                return name

        before = threading.active_count()  # other tests may have left some
        tasks = [asyncio.create_task(one(name)) for name in names]
        await soon(lambda: all(waiters(locks, name) for name in names), "all wait in line")
        assert threading.active_count() - before < len(names) / 2
        for holder in holders:
            holder.release()
        assert await asyncio.gather(*tasks) == names

    run(work())


class TestCancellation:
    @pytest.mark.parametrize("after", range(6))
    def test_at_each_await_of_an_acquire_nothing_is_left(self, locks: EtcdLocks, after: int) -> None:
        """``after`` so many turns of the loop, from before the first request to the hand-out."""

        async def work() -> None:
            lock = locks.alock("a")
            task = asyncio.create_task(lock.acquire())
            for _ in range(after):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            # Its own task is over: what it got in the last moment is let go, too.
            await soon(lambda: not locks.holders("a"), "no key is left")
            async with lock:
                pass

        run(work())

    def test_in_line(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        async def work() -> None:
            first, second = (locks.alock("a", wait_timeout=None) for _ in range(2))
            async with others.alock("a") as held:
                tasks = [asyncio.create_task(lock.acquire()) for lock in (first, second)]
                await soon(lambda: waiters(others, "a"), "the first is in line")
                for task in tasks:
                    task.cancel()
                assert all(
                    isinstance(each, asyncio.CancelledError)
                    for each in await asyncio.gather(*tasks, return_exceptions=True)
                )
                await soon(lambda: not waiters(others, "a"), "no place is left")
                held.check()
            async with first:
                pass

        run(work())

    def test_while_a_request_is_under_way(self, locks: EtcdLocks, monkeypatch: pytest.MonkeyPatch) -> None:
        """It can't be called back: it takes effect when nobody waits for it any more, and is undone."""
        entered, go_on = threading.Event(), threading.Event()

        async def work() -> None:
            async with locks.alock("warm up"):
                pass
            store = locks.manager.store
            real = store.perform

            def slow(operation: Any, timeout_seconds: float) -> Any:
                if type(operation).__name__ != "TryAcquire":
                    return real(operation, timeout_seconds)
                reply = real(operation, timeout_seconds)
                entered.set()
                go_on.wait(20)
                return reply

            monkeypatch.setattr(store, "perform", slow)
            task = asyncio.create_task(locks.alock("a").acquire())
            await soon(entered.is_set, "the request is under way")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            await soon(lambda: not locks.holders("a"), "no key is left")

        run(work())

    def test_time_outs_as_people_write_them(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        async def work() -> None:
            lock = locks.alock("a", wait_timeout=None)
            async with others.alock("a"):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(lock.acquire(), 0.05)
                if sys.version_info >= (3, 11):
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.05), lock:
                            pytest.fail("the block runs")
                    with pytest.raises(BaseExceptionGroup):  # noqa: F821, PT012
                        async with asyncio.TaskGroup() as group:
                            group.create_task(lock.acquire())
                            await asyncio.sleep(0.02)
                            raise ValueError
                await soon(lambda: not waiters(others, "a"), "no place is left")
            # wait_for may run it in a task of its own: it acquires for the one that called.
            assert await asyncio.wait_for(lock.acquire(), 20)
            assert lock.owned()
            await lock.release()

        run(work())

    def test_a_release_goes_on_to_its_end(self, locks: EtcdLocks) -> None:
        """Also one that no thread was free for when its caller was cancelled."""
        go_on = threading.Event()

        async def work() -> None:
            leaving = asyncio.Event()
            task = asyncio.create_task(hold(leaving))
            await leaving.wait()
            threads = locks.access().in_loop()._threads
            for _ in range(THREADS):
                threads.submit(go_on.wait, 20)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            await soon(lambda: not locks.holders("a"), "the block's lock is released")

        async def hold(leaving: asyncio.Event) -> None:
            async with locks.alock("a"):
                leaving.set()
                await asyncio.sleep(0)

        run(work())

    def test_while_a_session_is_opened(self, locks: EtcdLocks, monkeypatch: pytest.MonkeyPatch) -> None:
        """The thread goes on to open it; nobody uses it then, so it isn't renewed for ever."""
        begun, go_on = threading.Event(), threading.Event()
        store: LockStore = locks.manager.store
        real = store.perform

        def slow(operation: Any, timeout_seconds: float) -> Any:
            if isinstance(operation, GrantLease):
                begun.set()
                assert go_on.wait(20)
            return real(operation, timeout_seconds)

        async def work() -> None:
            monkeypatch.setattr(store, "perform", slow)
            task = asyncio.create_task(locks.alock("a", lock_ttl=7).acquire())
            await soon(begun.is_set, "a session is opened")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            await soon(lambda: [session for session in opened() if session.close_if_idle(0)], "it is used by nobody")

        def opened() -> list[Session]:
            return locks.manager._keeper._sessions.all()

        run(work())

    def test_by_cancel(self, locks: EtcdLocks, others: EtcdLocks) -> None:
        async def work() -> None:
            lock = locks.alock("a", wait_timeout=None)
            async with others.alock("a"):
                task = asyncio.create_task(lock.acquire())
                await soon(lambda: waiters(others, "a"), "it waits")
                lock.cancel()
                assert await task is False

        run(work())


def test_the_loop_never_waits_for_the_store(locks: EtcdLocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks the store, it isn't the loop's thread."""

    async def work() -> None:
        store: LockStore = locks.manager.store
        real = store.perform
        threads: set[int] = set()

        def seen(operation: Any, timeout_seconds: float) -> Any:
            threads.add(threading.get_ident())
            return real(operation, timeout_seconds)

        monkeypatch.setattr(store, "perform", seen)
        lock = locks.alock("a", wait_timeout=5)
        async with lock:
            assert not await locks.alock("a").acquire()
            await lock.locked()
            waits = asyncio.create_task(locks.alock("a", wait_timeout=0.1).acquire())
            assert await waits is False
        assert threads
        assert threading.get_ident() not in threads

    run(work())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_task_that_ends_while_it_holds(locks: EtcdLocks, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        lock = locks.alock("a")
        with pytest.warns(ResourceWarning, match="the asyncio task ended that held it"):  # noqa: PT031
            await asyncio.create_task(forget(lock))
            await asyncio.sleep(0)
        await soon(lambda: not locks.holders("a"), "it is released")
        assert await lock.acquire(), "by another task"
        await lock.release()

    async def forget(lock: Any) -> None:
        assert await lock.acquire()

    run(work())
    assert "lock 'a' is released now: the asyncio task ended" in caplog.text


def test_a_generator_that_is_left_by_another_task(locks: EtcdLocks) -> None:
    """As test fixtures and web frameworks do."""

    async def work() -> None:
        lock = locks.alock("a")

        @asynccontextmanager
        async def in_block() -> AsyncIterator[Any]:
            async with lock as held:
                yield held

        block = in_block()
        held = await asyncio.create_task(block.__aenter__())  # type: ignore[arg-type]
        gc.collect()
        held.check()
        await asyncio.create_task(block.__aexit__(None, None, None))  # type: ignore[arg-type]
        assert held.lost

    run(work())
    assert not locks.holders("a")


def test_each_object_says_where_it_belongs(locks: EtcdLocks) -> None:
    async def work() -> None:
        with pytest.raises(TypeError, match="blocks its thread"):
            async with locks.lock("a"):
                pytest.fail("the block runs")

    run(work())
    with pytest.raises(TypeError, match="is for asyncio"), locks.alock("a"):
        pytest.fail("the block runs")
    with pytest.raises(ValueError, match="on_lost must be a plain function"):
        locks.alock("a", on_lost=soon)


def test_the_watch_ends_when_nobody_waits(locks: EtcdLocks, others: EtcdLocks) -> None:
    async def work() -> None:
        async with others.alock("a"):
            assert not await locks.alock("a", wait_timeout=0.2).acquire()

    run(work())
    for each in (locks, others):
        each.close()
    named = "celery-etcdlock-changes", "celery-etcdlock-asyncio"
    wait_for(
        lambda: not [thread.name for thread in threading.enumerate() if thread.name.startswith(named)],
        "no thread is left",
    )
