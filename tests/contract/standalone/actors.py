"""Those who hold locks in the state machine: threads (greenlets, under gevent) and tasks of an event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import queue
import threading
from collections.abc import Callable
from typing import Any

from celery_etcdlock import AsyncEtcdLock, EtcdLock, EtcdLocks

SECONDS = 60.0


class ThreadActor:
    """A thread that does what it is told, on a lock object that it may share with others."""

    def __init__(self, client: EtcdLocks, lock: EtcdLock) -> None:
        self.client, self.lock = client, lock
        self.waits: concurrent.futures.Future[bool] | None = None
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], concurrent.futures.Future[Any]] | None]
        self._begin()

    def _begin(self) -> None:
        self._work = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(self._work,), daemon=True)
        self._thread.start()

    @staticmethod
    def _run(work: queue.SimpleQueue[Any]) -> None:
        while (job := work.get()) is not None:
            function, future = job
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            del job, function, future

    def _start(self, function: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._work.put((function, future))
        return future

    def do(self, function: Callable[[], Any]) -> Any:
        return self._start(function).result(SECONDS)

    def acquire(self, seconds: float) -> bool:
        return bool(self.do(lambda: self.lock.acquire(timeout=seconds)))

    def begin_to_wait(self) -> None:
        self.waits = self._start(lambda: self.lock.acquire(timeout=SECONDS))

    def release(self) -> None:
        self.do(self.lock.release)

    def cancel(self) -> None:
        """There is no other way to end a thread's wait than that of all who wait for its object."""
        self.lock.cancel()

    def end(self) -> None:
        """The thread ends, whatever it holds. Another takes its place."""
        self._work.put(None)
        self._thread.join(SECONDS)
        gc.collect()
        self._begin()

    def close(self) -> None:
        self._work.put(None)
        self._thread.join(SECONDS)


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(SECONDS)
        self.loop.close()


class TaskActor:
    """A task of an event loop that does what it is told."""

    def __init__(self, client: EtcdLocks, lock: AsyncEtcdLock, loop: Loop) -> None:
        self.client, self.lock = client, lock
        self.waits: concurrent.futures.Future[bool] | None = None
        self._loop = loop.loop
        self._begin()

    def _begin(self) -> None:
        self._work: asyncio.Queue[Any] = asyncio.Queue()
        self._acquiring: asyncio.Future[bool] | None = None
        self._task = asyncio.run_coroutine_threadsafe(self._run(self._work), self._loop)

    async def _run(self, work: asyncio.Queue[Any]) -> None:
        while (job := await work.get()) is not None:
            function, future = job
            try:
                future.set_result(await function())
            except BaseException as error:
                future.set_exception(error)
            del job, function, future

    def _start(self, function: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._loop.call_soon_threadsafe(self._work.put_nowait, (function, future))
        return future

    def do(self, function: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return function()

        return self._start(call).result(SECONDS)

    def acquire(self, seconds: float) -> bool:
        return bool(self._start(lambda: self.lock.acquire(timeout=seconds)).result(SECONDS))

    def begin_to_wait(self) -> None:
        async def wait() -> bool:
            # As wait_for of Python 3.10 and 3.11 does: in a task of its own, for this one.
            self._acquiring = asyncio.ensure_future(self.lock.acquire(timeout=SECONDS))
            try:
                return await self._acquiring
            except asyncio.CancelledError:
                return False

        self.waits = self._start(wait)

    def release(self) -> None:
        self._start(self.lock.release).result(SECONDS)

    def cancel(self) -> None:
        """Its own wait alone."""

        def cancel() -> None:
            if self._acquiring is not None:
                self._acquiring.cancel()

        self._loop.call_soon_threadsafe(cancel)

    def end(self) -> None:
        """The task ends, whatever it holds. Another takes its place."""
        self._loop.call_soon_threadsafe(self._work.put_nowait, None)
        self._task.result(SECONDS)
        self._begin()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._work.put_nowait, None)
        self._task.result(SECONDS)


Actor = ThreadActor | TaskActor
