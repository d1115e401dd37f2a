"""Asks the store for callers in an event loop, which must never wait for it itself.

What is slow runs elsewhere:

* *requests* in a few threads (``THREADS``), shared by all event loops of the process. Each is bounded by its deadline,
  which counts from when it was asked for, not from when a thread was free;
* *waiting for a change* in no thread at all: one watch serves all who wait (``DeletionWatch``), or they look again
  after growing pauses, where the store has none to offer;
* *waiting for a turn* in the loop, on a future.

*Cancellation.* A request that hasn't begun is taken back. One that is under way can't be: it goes on in its thread to
its end, and whoever asked treats it as unanswered (``acquisition``), so what it did is undone and can't come back.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from celery_etcdlock.core.operations import AwaitChange, StoreOperation
from celery_etcdlock.core.replies import Changed, StoreReply
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.clock import Clock, boot_time
from celery_etcdlock.locking.deletion_watch import DeletionWatch
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.store_access import Bell

Result = TypeVar("Result")

#: Threads that ask the store for event loops, at most.
THREADS = 8

#: Pauses between two looks where no watch can be had, in seconds: they grow from the first to the second.
LOOK_SECONDS = (0.02, 1.0)


@dataclass(eq=False)
class LoopStoreAccess:
    """See the module. One for each call. ``changes`` is ``None`` where the store has no watch for all to offer."""

    _loop: asyncio.AbstractEventLoop
    _threads: concurrent.futures.Executor
    _store: LockStore
    _changes: DeletionWatch | None
    _clock: Clock = boot_time
    _pause: float = field(init=False, default=LOOK_SECONDS[0])

    async def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        if isinstance(operation, AwaitChange):
            return await self._await_change(operation, timeout_seconds)
        until = self._clock() + timeout_seconds

        def ask() -> StoreReply:
            seconds_left = until - self._clock()
            if seconds_left <= 0:
                raise LockUnavailable(
                    "the lock store couldn't be asked in time: too many requests wait in this process"
                )
            return self._store.perform(operation, seconds_left)

        return await asyncio.wrap_future(self._threads.submit(ask))

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def call(
        self, function: Callable[..., Result], *arguments: Any, undo: Callable[[], object] | None = None
    ) -> Result:
        """A call that has begun goes on to its end when its caller is cancelled."""
        future = self._threads.submit(function, *arguments)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if undo is not None:
                future.add_done_callback(lambda _: undo())
            raise

    async def finish(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """As ``call``, for what must be done also when nobody waits for it any more."""
        return await asyncio.shield(asyncio.wrap_future(self._threads.submit(function, *arguments)))

    def bell(self) -> Bell:
        return LoopBell(self._loop)

    async def _await_change(self, operation: AwaitChange, timeout_seconds: float) -> Changed:
        bell = LoopBell(self._loop)
        stop = operation.stop
        if self._changes is None:
            timeout_seconds = min(timeout_seconds, self._pause)
            self._pause = min(self._pause * 1.5, LOOK_SECONDS[1])
        try:
            if self._changes is not None:
                self._changes.add(bell.ring, operation.name, operation.after_revision)
            with nullcontext() if stop is None else stop.waking(bell.ring):
                await bell.wait(timeout_seconds)
        finally:
            if self._changes is not None:
                self._changes.remove(bell.ring, operation.name)
        return Changed()


class LoopBell:
    """Wakes a coroutine of ``loop``, from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._event = asyncio.Event()

    def ring(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:  # the loop is closed, and nobody waits in it
            return

    async def wait(self, seconds: float) -> None:
        timer = self._loop.call_later(max(0.0, seconds), self._event.set)
        try:
            await self._event.wait()
        finally:
            timer.cancel()
            self._event.clear()
