"""An ``async def`` body holds its lock until it has ended, where somebody awaits it, and else isn't begun."""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Task

from celery_etcdlock import EtcdLockError, LockConflict, LockLost, SingletonTask, current_lock, singleton_task
from celery_etcdlock.tasks.execution import interruption
from tests.unit.tasks.lab import Lab, run_message


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.delenv("ETCDLOCK_ENDPOINTS", raising=False)
    monkeypatch.setattr("celery_etcdlock.tasks.definition.checks.may_be_awaited", lambda: True)
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.AbstractEventLoop]:
    """What celery-aio-pool leaves where it is looked for: an event loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    module: Any = types.ModuleType("celery_aio_pool.pool")
    module.AsyncIOPool = types.SimpleNamespace(singleton=types.SimpleNamespace(loop=loop))
    monkeypatch.setitem(sys.modules, "celery_aio_pool.pool", module)
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def define(lab: Lab, seen: list[Any], **options: Any) -> Any:
    async def body(number: int = 0) -> int:
        before = current_lock().fencing_token
        await asyncio.sleep(0)
        lab.bodies.append(current_lock().name)
        assert current_lock().fencing_token == before
        seen.append(lab.locks.holders("name"))
        return number

    return singleton_task(app=lab.app, name="task", shared=False, lock_key="name", on_conflict="raise", **options)(body)


def check(lab: Lab, seen: list[Any]) -> None:
    assert lab.bodies == ["name"]
    assert [len(holders) for holders in seen] == [1]
    assert not lab.locks.holders("name")


def test_where_the_pool_awaits_it(lab: Lab, pool: asyncio.AbstractEventLoop) -> None:
    seen: list[Any] = []
    result, message = lab.publish(define(lab, seen), 7)
    run_message(lab.app, message)
    assert result.get(timeout=5) == 7
    check(lab, seen)


def test_a_plain_wrapper_around_a_coroutine(lab: Lab, pool: asyncio.AbstractEventLoop) -> None:
    """Nothing tells beforehand that it gives one."""
    seen: list[Any] = []

    async def inside(number: int) -> int:
        seen.append(lab.locks.holders("name"))
        lab.bodies.append(current_lock().name)
        return number

    @singleton_task(app=lab.app, shared=False, name="task", lock_key="name")
    @functools.wraps(inside)
    def task(number: int) -> Any:
        return inside(number)

    result, message = lab.publish(task, 7)
    run_message(lab.app, message)
    assert result.get(timeout=5) == 7
    check(lab, seen)


@pytest.mark.parametrize("way", ["worker", "ignore_result", "eager"])
def test_where_nobody_awaits_it_it_isnt_begun(lab: Lab, way: str) -> None:
    seen: list[Any] = []
    task = define(lab, seen, ignore_result=way == "ignore_result")
    if way == "eager":
        result = task.apply()
    else:
        result, message = lab.publish(task)
        failures: list[Any] = []
        task.on_failure = lambda error, *_: failures.append(error)
        run_message(lab.app, message)
        assert "nobody here awaits it" in str(failures[0])
    assert lab.bodies == []
    assert result.state == ("PENDING" if way == "ignore_result" else "FAILURE")
    assert not lab.locks.holders("name")


@pytest.mark.parametrize("base", [Task, SingletonTask])
def test_a_base_class_that_runs_an_event_loop(lab: Lab, base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_etcdlock.tasks.definition.checks.may_be_awaited", lambda: False)

    class Loop(base):  # type: ignore[misc]
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return asyncio.run(self.run(*args, **kwargs))

    seen: list[Any] = []
    task = define(lab, seen, base=Loop)
    result, message = lab.publish(task, 7)
    run_message(lab.app, message)
    assert result.get(timeout=5) == 7
    check(lab, seen)
    assert task(8) == 8
    with lab.locks.lock("name"), pytest.raises(LockConflict):
        task(9)


@pytest.mark.parametrize("written", ["async def", "def"])
def test_what_a_coroutine_calls_is_a_call_of_its_own(lab: Lab, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    """Also where a plain ``run`` made the coroutine: nobody would await the other with its lock, so it isn't run."""
    monkeypatch.setattr("celery_etcdlock.tasks.definition.checks.may_be_awaited", lambda: False)
    held: list[tuple[str, int]] = []

    class Loop(SingletonTask):  # type: ignore[misc]
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return asyncio.run(self.run(*args, **kwargs))

    async def body(self: Any, key: str) -> str:
        held.append((key, len(lab.locks.holders(key))))
        return key if key == "other" else str(await self.run("other"))

    def run(self: Any, key: str) -> Any:
        return body(self, key)

    function = body if written == "async def" else run
    options = {"base": Loop, "lock_key": "{key}", "bind": True, "name": "calls", "shared": False}
    task = singleton_task(app=lab.app, **options)(function)
    result, message = lab.publish(task, "one")
    run_message(lab.app, message)
    if written == "async def":
        assert result.get(timeout=5) == "other"
        assert held == [("one", 1), ("other", 1)]
    else:
        with pytest.raises(EtcdLockError, match="its body is a coroutine"):
            result.get(timeout=5)
        assert held == [("one", 1)]


def test_a_coroutine_that_nobody_awaits_is_closed(lab: Lab) -> None:
    """Nothing is said of it but the error."""
    begun: list[int] = []

    async def body() -> None:
        begun.append(1)

    class Passes(SingletonTask):  # type: ignore[misc]
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.run(*args, **kwargs)

    def run() -> Any:
        return body()

    task = singleton_task(app=lab.app, base=Passes, lock_key="name", name="closed", shared=False)(run)
    gc.collect()  # what other tests left may have something to say, too
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(EtcdLockError, match="its body is a coroutine"):
            task()
        gc.collect()
    assert [str(each.message) for each in said] == []
    assert begun == []


def test_awaited_directly(lab: Lab) -> None:
    seen: list[Any] = []
    task = define(lab, seen)
    for call in (task, task.run):
        lab.bodies.clear()
        seen.clear()
        assert asyncio.run(call(7)) == 7
        check(lab, seen)
        with lab.locks.lock("name"), pytest.raises(LockConflict):
            asyncio.run(call(7))
        assert len(lab.bodies) == 1


def test_one_that_is_cancelled_lets_go_once_it_has_ended(lab: Lab) -> None:
    seen = []
    begun = asyncio.Event()

    @singleton_task(app=lab.app, shared=False, name="task", lock_key="name")
    async def task() -> None:
        try:
            begun.set()
            await asyncio.sleep(60)
        finally:
            seen.append(len(lab.locks.holders("name")))

    async def main() -> None:
        running = asyncio.ensure_future(task())
        await asyncio.wait_for(begun.wait(), 30)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert seen == [1]
    assert not lab.locks.holders("name")


def test_a_lost_lock_cancels_it(lab: Lab, pool: asyncio.AbstractEventLoop) -> None:
    begun = threading.Event()
    seen = []

    @singleton_task(app=lab.app, shared=False, name="task", lock_key="name")
    async def task() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("cancelled")

    result, message = lab.publish(task)
    thread = threading.Thread(target=run_message, args=(lab.app, message))
    thread.start()
    assert begun.wait(30)
    [[armed]] = list(interruption._armed.values())
    armed.interrupt(LockLost("name"))
    thread.join(30)
    assert not thread.is_alive()
    assert seen == ["cancelled"]
    assert isinstance(result.result, LockLost)
