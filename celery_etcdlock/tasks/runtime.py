"""The locks of one app: settings read once, one lock manager for each process.

A manager belongs to the process that made it: its connections, its lease and its thread don't survive a fork, and a
child that touched its parent's would break both. So each process finds its manager by its pid and makes one at need.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from weakref import WeakKeyDictionary

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.signals import worker_process_shutdown

from celery_etcdlock.core.events import Listener, LockEvent
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import STANDALONE_PREFIX, Delivery, Record
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.errors import EtcdLockError, InvalidSetting, LockConflict
from celery_etcdlock.listeners import Listeners, find_listener
from celery_etcdlock.listeners.celery_events import CeleryEvents
from celery_etcdlock.locking.claim import Claim, Conflict
from celery_etcdlock.locking.guardian import Guardian
from celery_etcdlock.locking.lease_page import LeasePage
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.signals import send_signal
from celery_etcdlock.tasks.conf import broker_fingerprint, host_name, settings_of
from celery_etcdlock.tasks.outage import Outage
from celery_etcdlock.wiring import MEMORY_ENDPOINT, open_stores

__all__ = ["EtcdLocks", "StandaloneLock", "conflict_error", "describe_holder", "locks_at", "warn_of_another_broker"]

logger = logging.getLogger("celery_etcdlock")

_locks_of_apps: WeakKeyDictionary[Celery, EtcdLocks] = WeakKeyDictionary()
#: Where all locks of this process are while tests say so (``locks_at``).
_elsewhere: tuple[str, ...] | None = None


class EtcdLocks:
    """All locks of an app, for its tasks and for use without a task. Get it by ``EtcdLocks.from_app(app)``."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._settings: Settings | None = None
        self._broker: str | None = None
        self._managers: dict[int, LockManager] = {}
        self._page: LeasePage | None = None
        self._celery_events: CeleryEvents | None = None
        self._more_listeners: list[Listener] = []
        #: Whether the lock store is away, as far as tasks of this process know.
        self.outage = Outage()

    @classmethod
    def from_app(cls, app: Celery) -> EtcdLocks:
        """The app's locks, always the same object."""
        app = getattr(app, "_get_current_object", lambda: app)()
        locks = _locks_of_apps.get(app)
        if locks is None:
            locks = _locks_of_apps.setdefault(app, cls(app))
        return locks

    @property
    def settings(self) -> Settings:
        """The app's ``etcdlock_*`` settings, read at first use. Raises ``ImproperlyConfigured``."""
        if self._settings is None:
            settings = settings_of(self._app)
            self._settings = settings if _elsewhere is None else settings.at(_elsewhere)
        return self._settings

    @property
    def manager(self) -> LockManager:
        """This process's lock manager. Connects to nothing yet. Raises ``ImproperlyConfigured``."""
        pid = os.getpid()
        manager = self._managers.get(pid)
        return manager if manager is not None else self._open(pid)

    def _open(self, pid: int) -> LockManager:
        try:
            configured = [find_listener(entry) for entry in self.settings.listeners or ()]
            store, renewal_store = open_stores(self.settings)
        except InvalidSetting as error:
            raise ImproperlyConfigured(str(error)) from None
        listeners = [send_signal, *configured, *self._more_listeners]
        timeout_seconds = self.settings.timeout
        manager = LockManager(
            store,
            renewal_store,
            timeout_seconds=timeout_seconds,
            listener=Listeners(listeners),
            done_seconds=self.settings.done_ttl,
            page=self._page,
        )
        manager = self._managers.setdefault(pid, manager)
        for other in [other for other in self._managers if other != pid]:
            self._managers.pop(other, None)  # the parent's, before the fork
        return manager

    def look_after_children(self) -> Guardian | None:
        """Free the locks of processes that this one will fork and that die; to be called before it forks.

        Returns the guardian, to be started once; ``None`` where locks aren't shared among processes.
        """
        if self.settings.endpoints == (MEMORY_ENDPOINT,):
            return None
        self._page = LeasePage()
        self.close()  # what there is of a manager doesn't know the page
        _, store = open_stores(self.settings)
        return Guardian(self._page, store)

    def lock(self, name: str, *, wait_timeout: float = 0.0, lock_ttl: int | None = None) -> StandaloneLock:
        """A lock without a task, as a context manager that raises ``LockConflict`` when it can't be had.

        ``name`` is the whole name: a task with ``lock_key=name`` competes for the same lock. ``wait_timeout`` is how
        many seconds to wait in line, in order of arrival; ``lock_ttl`` after how many seconds a dead holder's lock is
        free.
        """
        if not isinstance(name, str) or not name:
            raise ValueError("name must be a non-empty str")
        if not isinstance(wait_timeout, int | float) or not 0 <= wait_timeout < float("inf"):
            raise ValueError(f"wait_timeout must be a finite number of seconds, at least 0, not {wait_timeout!r}")
        if lock_ttl is not None and (not isinstance(lock_ttl, int) or lock_ttl < 2):
            raise ValueError(f"lock_ttl must be a whole number of seconds, at least 2, not {lock_ttl!r}")
        return StandaloneLock(self, name, wait_timeout, lock_ttl)

    def record(self, delivery: Delivery, task: str, limit: int = 1) -> Record:
        """What is stored under a lock that this process takes now."""
        if self._broker is None:
            self._broker = broker_fingerprint(self._app)
        return Record(delivery, task, host_name(), os.getpid(), round(time.time(), 3), limit, self._broker)

    def acquire(
        self,
        name: str,
        record: Record,
        *,
        ttl_seconds: int,
        wait_seconds: float = 0.0,
        on_held: Callable[[Lock], None] | None = None,
        on_lost: Callable[[Lock], None] | None = None,
    ) -> Lock | Conflict:
        """See ``LockManager.acquire``."""
        return self.manager.acquire(
            name, record, ttl_seconds=ttl_seconds, wait_seconds=wait_seconds, on_held=on_held, on_lost=on_lost
        )

    def take_over(
        self,
        claim: Claim,
        record: Record,
        *,
        ttl_seconds: int,
        on_held: Callable[[Lock], None] | None = None,
        on_lost: Callable[[Lock], None] | None = None,
    ) -> Lock | Conflict:
        """See ``LockManager.take_over``."""
        return self.manager.take_over(claim, record, ttl_seconds=ttl_seconds, on_held=on_held, on_lost=on_lost)

    def holders(self, name: str) -> tuple[Key, ...]:
        """Who holds the lock ``name`` now, and who waits behind them, in order. Raises ``LockUnavailable``."""
        return self.manager.pending.look(name)

    def send_celery_events(self, hostname: str) -> None:
        """From now on, publish lock events as Celery events of the worker ``hostname``. To be called before a fork."""
        self._celery_events = CeleryEvents(self._app, hostname)
        self.add_listener(self._celery_events)

    def add_listener(self, listener: Listener) -> None:
        """Tell ``listener`` of all events from now on, here and in processes that are forked later."""
        self._more_listeners.append(listener)
        manager = self._managers.pop(os.getpid(), None)  # which doesn't know it
        if manager is not None:
            manager.close()

    def tell(self, event: LockEvent) -> None:
        """Log ``event`` and tell all listeners."""
        self.manager.tell(event)

    def close(self) -> None:
        """Give up this process's connections and its lease, if nothing hangs on it."""
        manager = self._managers.pop(os.getpid(), None)
        if manager is not None:
            manager.close()
        if self._celery_events is not None:
            self._celery_events.close()


class StandaloneLock:
    """A lock held for the time of a ``with`` block; see ``EtcdLocks.lock``. It isn't reentrant."""

    def __init__(self, locks: EtcdLocks, name: str, wait_timeout: float, lock_ttl: int | None) -> None:
        self._locks = locks
        self._name = name
        self._wait_timeout = wait_timeout
        self._lock_ttl = lock_ttl
        self._held: Lock | None = None

    def __enter__(self) -> Lock:
        """Take the lock. Raises ``LockConflict`` or ``LockUnavailable``."""
        if self._held is not None:
            raise EtcdLockError(f"lock {self._name!r} is entered already: make a new one with EtcdLocks.lock()")
        record = self._locks.record(Delivery(f"{STANDALONE_PREFIX}pid {os.getpid()}"), self._name)
        try:
            outcome = self._locks.acquire(
                self._name,
                record,
                ttl_seconds=self._lock_ttl or self._locks.settings.ttl,
                wait_seconds=self._wait_timeout,
                on_held=self._hold,
            )
        except BaseException:
            self._release()
            raise
        if isinstance(outcome, Conflict):
            raise conflict_error(outcome)
        return outcome

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release()

    def _hold(self, lock: Lock) -> None:
        self._held = lock

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._locks.manager.release(held)


def conflict_error(conflict: Conflict) -> LockConflict:
    """The error that says who holds the lock."""
    holder = conflict.holder
    task_id = holder.delivery.task_id if holder is not None and holder.delivery.is_message else None
    return LockConflict(conflict.name, describe_holder(conflict.keys), task_id)


def describe_holder(keys: tuple[Key, ...]) -> str:
    """One line on who holds a lock, for results, errors and logs."""
    if not keys:
        return "somebody who let go meanwhile"
    record = keys[0].record
    if record is None:
        return "something that isn't celery-etcdlock, or is a newer version of it"
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.since))
    if record.delivery.task_id.startswith(STANDALONE_PREFIX):
        return f"{record.delivery.task_id} ({record.task}) on {record.host}, since {since}"
    return f"task {record.delivery.task_id} ({record.task}) on {record.host}, pid {record.pid}, since {since}"


def warn_of_another_broker(conflict: Conflict, mine: Record) -> None:
    """Two deployments under one prefix take each other's locks (rule 19)."""
    holder = conflict.holder
    if holder is not None and holder.broker != mine.broker and holder.broker is not None:
        logger.warning(
            "lock %r is held by a task of another broker (%s): if these are two deployments, give each "
            "its own etcdlock_prefix",
            conflict.name,
            describe_holder(conflict.keys),
        )


@contextmanager
def locks_at(endpoints: tuple[str, ...]) -> Iterator[None]:
    """For tests: all apps of this process have their locks at ``endpoints``, without TLS or a user."""
    global _elsewhere
    before = _elsewhere
    _open_anew()
    _elsewhere = endpoints
    try:
        yield
    finally:
        _open_anew()
        _elsewhere = before


def _open_anew() -> None:
    for locks in list(_locks_of_apps.values()):
        locks.close()
        locks._settings = None


def _close_all(**_: object) -> None:
    for locks in list(_locks_of_apps.values()):
        locks.close()


# A pool's child ends without atexit, any other process without the signal.
worker_process_shutdown.connect(_close_all, weak=False)
atexit.register(_close_all)
