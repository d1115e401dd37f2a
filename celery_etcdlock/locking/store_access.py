"""How a caller waits for the store: in its own thread, or beside an event loop. The same code serves both.

What acquires a lock is written once, as coroutines that await one of these. A thread (or greenlet) runs such a
coroutine with ``run_at_once``: nothing in it ever suspends, so it is an ordinary call, and whatever interrupts the
thread comes out of the very line that it waits in. An event loop runs it with ``LoopStoreAccess``, where
each await gives the loop its turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from celery_etcdlock.core.operations import StoreOperation
from celery_etcdlock.core.replies import StoreReply
from celery_etcdlock.locking.lock_store import LockStore

Result = TypeVar("Result")

#: ``threading.Lock`` takes no timeout above its own greatest; whoever waits looks again then.
LONGEST_WAIT_SECONDS = 3600.0


class Bell(Protocol):
    """Wakes one caller. ``ring`` may be called in any thread and before anybody waits; rings don't add up."""

    def ring(self) -> None: ...

    async def wait(self, seconds: float) -> None:
        """Until it rings, or so long."""


class StoreAccess(Protocol):
    """See the module."""

    async def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        """As ``LockStore.perform``."""

    async def pause(self, seconds: float) -> None: ...

    async def call(
        self, function: Callable[..., Result], *arguments: Any, undo: Callable[[], object] | None = None
    ) -> Result:
        """Call what may ask the store. ``undo`` is called after it if nobody waits for the result any more."""

    def bell(self) -> Bell: ...


class BlockingStoreAccess:
    """In the caller's thread or greenlet."""

    def __init__(self, store: LockStore, sleep: Callable[[float], object] = time.sleep) -> None:
        self._store = store
        self._sleep = sleep

    async def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        return self._store.perform(operation, timeout_seconds)

    async def pause(self, seconds: float) -> None:
        self._sleep(seconds)

    async def call(
        self, function: Callable[..., Result], *arguments: Any, undo: Callable[[], object] | None = None
    ) -> Result:
        return function(*arguments)

    def bell(self) -> Bell:
        return ThreadBell()


class ThreadBell:
    """A lock of the flavour that the process uses: greenlets wait for it, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:  # it rings already
            return

    async def wait(self, seconds: float) -> None:
        self._lock.acquire(timeout=min(max(seconds, 0.0), LONGEST_WAIT_SECONDS))


def run_at_once(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that awaits nothing but a ``BlockingStoreAccess``."""
    try:
        work.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    work.close()
    raise RuntimeError("a coroutine that should only block was suspended")
