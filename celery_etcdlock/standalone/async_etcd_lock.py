"""The lock object of asyncio: the same lock, for coroutines.

Nothing here waits for the store in the loop's thread (``locking.loop_store_access`` says what runs where). A caller is
the task that calls: ``acquire`` notes it at the call, not when the coroutine runs. So ``asyncio.wait_for`` and
``gather``, which may run it in a task of their own, acquire for the task that called.

*Cancellation.* A cancelled ``acquire`` leaves nothing: the renewal's thread deletes what it put, or may still put. A
cancelled ``release`` goes on to its end without its caller.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import weakref
from collections.abc import Coroutine
from types import FrameType, TracebackType
from typing import Any, NoReturn

from celery_etcdlock.errors import NotLocked
from celery_etcdlock.locking.lock_holder import LockHolder, holder_of
from celery_etcdlock.locking.outcomes import Conflict
from celery_etcdlock.locking.store_access import StoreAccess
from celery_etcdlock.standalone import argument_checks
from celery_etcdlock.standalone.held_lock import HeldLock
from celery_etcdlock.standalone.holdings import Holding, Holdings, Place
from celery_etcdlock.standalone.named_lock import NamedLock, place_of, warn_of_dropped
from celery_etcdlock.standalone.process_access import ProcessAccess


class AsyncEtcdLock(NamedLock):
    """A lock without a Celery task, for asyncio. By ``EtcdLocks.alock``.

    As ``EtcdLock``, with tasks of event loops in the place of threads, and ``async with lock as held:``. Any number of
    tasks of any event loop may share one object. ``asyncio.timeout`` and ``wait_for`` may end the wait at any time.
    """

    caller_kind = "task"
    _factory = "alock"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        #: Tasks whose end is noticed.
        self._followed: weakref.WeakSet[Any] = weakref.WeakSet()
        super().__init__(*arguments, **options)

    def _caller(self) -> Any:
        try:
            return asyncio.current_task()
        except RuntimeError:
            return None  # no loop runs here: nobody

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> Coroutine[Any, Any, bool]:
        """Await it: acquires the lock for the calling task, and returns whether that worked. Release in a ``finally``.

        Arguments and errors as of ``EtcdLock.acquire``.
        """
        seconds = argument_checks.seconds_to_wait(blocking, timeout, self._wait_seconds)
        return self._acquire_by_call(self._caller(), seconds, place_of(sys._getframe(1)))

    async def _acquire_by_call(self, caller: Any, seconds: float, where: Place) -> bool:
        return isinstance(await self._acquire_for(caller or self._caller(), seconds, None, where), Holding)

    async def release(self) -> None:
        """Release what this task holds. Otherwise as ``EtcdLock.release``."""
        holding = self._to_release()
        self._end_with(await (await self._access()).in_loop().finish(holding.release))

    def __aenter__(self) -> Coroutine[Any, Any, HeldLock]:
        return self._enter(sys._getframe(1))

    async def _enter(self, frame: FrameType) -> HeldLock:
        return self._entered(await self._acquire_for(self._caller(), self._wait_seconds, frame, place_of(frame)))

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Coroutine[Any, Any, None]:
        return self._leave(sys._getframe(1), error)

    async def _leave(self, frame: FrameType, error: BaseException | None) -> None:
        holding = self._to_leave(self._caller(), frame, error)
        if holding is not None:
            self._end_with(await (await self._access()).in_loop().finish(holding.release), error)

    async def _acquire_for(
        self, caller: Any, seconds: float, block: FrameType | None, where: Place
    ) -> Holding | Conflict:
        if caller is None:
            raise NotLocked(f"lock {self.name!r} can only be acquired in an event loop: call it in a coroutine")
        return await self._acquire(await self._access(), caller, seconds, block, where)

    def _asking(self, access: ProcessAccess) -> StoreAccess:
        return access.in_loop()

    def _acquired_by_call(self, holding: Holding, caller: Any) -> None:
        if caller not in self._followed:
            self._followed.add(caller)
            caller.add_done_callback(functools.partial(_task_ended, weakref.ref(self._holdings)))

    async def _access(self) -> ProcessAccess:
        """Opening it may import much, which the loop must not wait for."""
        return self._home.access() if self._home.is_open else await asyncio.to_thread(self._home.access)

    def _tell_lost(self, holding: Holding, held: HeldLock) -> None:
        """In the loop of the task that holds it."""
        caller = holding.caller()
        if caller is not None and not caller.get_loop().is_closed():
            caller.get_loop().call_soon_threadsafe(self._on_lost, held)

    def __enter__(self) -> NoReturn:
        raise TypeError(
            f"lock {self.name!r} is for asyncio: write async with. For threads: with "
            f"EtcdLocks.from_app(app).lock({self.name!r})"
        )

    def __exit__(self, *_: Any) -> None: ...

    async def locked(self) -> bool:
        """Whether anybody holds the lock; of several names, any of them. Raises ``LockUnavailable``."""
        return await self.holder() is not None

    async def holder(self) -> LockHolder | None:
        """Who holds the lock now, since when and for what; ``None`` if nobody does. Raises ``LockUnavailable``."""
        access = await self._access()
        for name in self._names:
            keys = await access.in_loop().call(access.manager.claims.look, name)
            if keys:
                return holder_of(keys)
        return None


def _task_ended(its: weakref.ref[Holdings], task: asyncio.Task[Any]) -> None:
    holdings = its()
    for holding in [] if holdings is None else holdings.all():
        if holding.caller() is task and holding.block is None:
            warn_of_dropped(holding.drop("the asyncio task ended that held it"))
