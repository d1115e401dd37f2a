"""What locks without a task need of their process: a manager, a queue of local waiters, threads for event loops."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from celery_etcdlock.core.record import STANDALONE_PREFIX, Delivery, Record
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.locking.deletion_watch import Deletions, DeletionWatch
from celery_etcdlock.locking.local_waiters import LocalWaiters
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.store_access import BlockingStoreAccess
from celery_etcdlock.native import allocate_mutex

if TYPE_CHECKING:
    import concurrent.futures

    from celery_etcdlock.locking.loop_store_access import LoopStoreAccess


class ProcessAccess:
    """For one manager, and so for one process. ``open_deletions`` is called at the first need of a watch for all."""

    def __init__(self, manager: LockManager, open_deletions: Callable[[], Deletions | None]) -> None:
        self.manager = manager
        #: Whose all locks without a task are.
        self.owner = Delivery(f"{STANDALONE_PREFIX}pid {manager.pid}")
        self.local_waiters = LocalWaiters(manager)
        self.blocking = BlockingStoreAccess(manager.store)
        self._open_deletions = open_deletions
        self._mutex = allocate_mutex()
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self._changes: DeletionWatch | None = None

    def in_loop(self) -> LoopStoreAccess:
        """Asks the store for a caller in the running event loop."""
        # Here, since most processes have no event loop, and asyncio costs more to import than all of this package.
        import asyncio
        import concurrent.futures

        from celery_etcdlock.locking.loop_store_access import THREADS, LoopStoreAccess

        with self._mutex:
            if self._threads is None:
                deletions = self._open_deletions()
                self._changes = None if deletions is None else DeletionWatch(deletions)
                self._threads = concurrent.futures.ThreadPoolExecutor(THREADS, "celery-etcdlock-asyncio")
            threads, changes = self._threads, self._changes
        return LoopStoreAccess(asyncio.get_running_loop(), threads, self.manager.store, changes)

    def close(self) -> None:
        """End the watch, and the threads once they have done what they were asked for."""
        with self._mutex:
            threads, self._threads = self._threads, None
            changes, self._changes = self._changes, None
        if changes is not None:
            changes.close()
        if threads is not None and self.manager.pid == os.getpid():
            threads.shutdown(wait=False)


class LocksOfApp(Protocol):
    """The app whose locks they are (``app.etcd_locks.EtcdLocks``)."""

    @property
    def settings(self) -> Settings: ...

    def access(self) -> ProcessAccess:
        """This process's. Connects to nothing yet, but may import much at first."""

    @property
    def is_open(self) -> bool:
        """Whether ``access`` returns at once."""

    def record(self, delivery: Delivery, task: str, limit: int = 1) -> Record: ...

    def etcd_key(self, name: str, token: str) -> bytes:
        """Where a key lies in etcd. Raises ``EtcdLockError`` where the locks aren't in an etcd."""
