"""Holds the lock of a task whose body is a coroutine until the coroutine has ended.

A coroutine's body runs while somebody awaits it, long after the call that made it. So where a call of a locked task
returns a coroutine, we await it with the lock held, in the event loop of the pool that would await it
(celery-aio-pool), while the thread that holds the lock waits. Without such a loop nobody would await it: that is an
error, and the coroutine is closed.

A direct call, ``await task(...)``, is a coroutine itself. A thread acquires the lock, since that blocks.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import inspect
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from celery_etcdlock.errors import EtcdLockError
from celery_etcdlock.tasks.entry.call_path import InBody, innermost

#: Seconds after which a thread that waits for a coroutine looks whether it is interrupted itself.
LOOK_SECONDS = 0.2
#: Seconds that a coroutine which is cancelled has to end.
CANCEL_SECONDS = 10.0

AWAITING_POOL = "celery_aio_pool"


def may_be_awaited() -> bool:
    """Whether some worker could await what a task gives, as far as is known where the task is defined."""
    return AWAITING_POOL in sys.modules or importlib.util.find_spec(AWAITING_POOL) is not None


def is_awaited_by(pool: Any) -> bool:
    return any(each.__module__.split(".")[0] == AWAITING_POOL for each in getattr(pool, "__mro__", ()))


def finished(task: Any, go_on: Callable[[], Any]) -> Any:
    """What ``go_on`` gives, once it is there. Raises ``EtcdLockError`` for a coroutine that nobody would await."""
    result = go_on()
    if not inspect.isawaitable(result):
        return result
    loop = _loop_of_pool()
    if loop is not None:
        return _Running(loop, result).wait()
    if not inspect.iscoroutine(result):
        return result  # some object of the user's own
    result.close()
    raise EtcdLockError(
        f"task {task.name!r}: its body is a coroutine, and nobody here awaits it while the lock is held, so it wasn't "
        "run: use celery-aio-pool, or call asyncio.run() in the body or in the __call__ of a base class"
    )


def awaited_in_body(result: Any) -> Any:
    """A coroutine that a plain function gives is the call's body as well, whoever awaits it."""
    if not inspect.iscoroutine(result):
        return result
    call_path = innermost()
    if call_path is None:
        return result

    async def body() -> Any:
        with InBody(call_path):
            return await result

    awaited: Any = body()
    awaited.__name__, awaited.__qualname__ = result.__name__, result.__qualname__
    # One that is closed before it has begun leaves nothing behind that warns of not having been awaited.
    weakref.finalize(awaited, result.close).atexit = False
    return awaited


def locked_coroutine(lock: Callable[[Callable[[], Any]], Any], go_on: Callable[[], Any]) -> Any:
    """``lock(go_on)`` in a thread, and what ``go_on`` gives awaited in the loop that awaits this."""

    async def locked() -> Any:
        loop = asyncio.get_running_loop()
        running: list[_Running] = []

        def in_loop() -> Any:
            running.append(_Running(loop, go_on()))
            return running[-1].wait()

        thread = asyncio.ensure_future(asyncio.to_thread(lock, in_loop))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            # Only after the lock is released.
            for each in running:
                each.cancel()
            await asyncio.wait([thread], timeout=CANCEL_SECONDS)
            raise

    return locked()


class _Running:
    """A coroutine in an event loop, and a thread that waits for it.

    What is raised in that thread meanwhile, as ``LockLost`` is, may strike anywhere: also just after it was begun.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, awaitable: Any) -> None:
        self._loop = loop
        self._awaitable = awaitable
        self._task: asyncio.Task[Any] | None = None
        self._is_begun = False
        self._is_cancelled = False
        self._ended = threading.Event()

    async def _run(self) -> Any:
        self._task = asyncio.current_task()
        try:
            if self._is_cancelled:
                raise asyncio.CancelledError
            return await self._awaitable
        finally:
            self._ended.set()

    def wait(self) -> Any:
        """Its result. What is raised in this thread cancels it, and goes on once it has ended."""
        try:
            self._is_begun = True
            future = asyncio.run_coroutine_threadsafe(self._run(), self._loop)
            while not concurrent.futures.wait([future], timeout=LOOK_SECONDS).done:
                pass
            return future.result()
        except BaseException:
            if self._is_begun and not self._ended.is_set():
                self.cancel()
                self._ended.wait(CANCEL_SECONDS)
            raise

    def cancel(self) -> None:
        self._is_cancelled = True
        self._loop.call_soon_threadsafe(self._cancel_task)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()


def _loop_of_pool() -> asyncio.AbstractEventLoop | None:
    """The event loop that awaits what tasks give here, unless this is its own thread."""
    module = sys.modules.get(f"{AWAITING_POOL}.pool")
    pool = getattr(getattr(module, "AsyncIOPool", None), "singleton", None)
    loop: asyncio.AbstractEventLoop | None = getattr(pool, "loop", None)
    if loop is None or not loop.is_running():
        return None
    try:
        return None if asyncio.get_running_loop() is loop else loop
    except RuntimeError:
        return loop
