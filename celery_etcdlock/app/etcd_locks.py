"""The locks of one app: settings read once, one lock manager for each process.

A manager belongs to the process that made it: its connections, lease and thread don't survive a fork, and a child that
used its parent's would break both. So each process finds its manager by its pid, or makes one.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakSet

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.signals import worker_process_shutdown

from celery_etcdlock.app.celery_settings import broker_fingerprint, host_name, settings_of
from celery_etcdlock.app.circuit_breaker import CircuitBreaker
from celery_etcdlock.core.events import Listener
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, KeyKind, Record
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.errors import InvalidSetting
from celery_etcdlock.listeners import Listeners, find_listener
from celery_etcdlock.listeners.celery_events import CeleryEvents
from celery_etcdlock.locking.child_lease_guardian import Guardian
from celery_etcdlock.locking.lease_page import LeasePage
from celery_etcdlock.locking.lock_holder import describe_holder
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.outcomes import Conflict
from celery_etcdlock.signals import send_signal
from celery_etcdlock.standalone.etcd_lock import EtcdLock
from celery_etcdlock.standalone.held_lock import HeldLock
from celery_etcdlock.standalone.process_access import ProcessAccess
from celery_etcdlock.wiring import etcd_key, open_deletions, open_stores

if TYPE_CHECKING:
    from celery_etcdlock.standalone.async_etcd_lock import AsyncEtcdLock


logger = logging.getLogger("celery_etcdlock")

#: Where an app keeps them, so that both are forgotten together; and all that there are.
_ATTRIBUTE = "_etcdlock_locks"
_known: WeakSet[EtcdLocks] = WeakSet()
#: Those with connections to be closed before the process ends.
_in_use: set[EtcdLocks] = set()
#: Where all locks of this process are during ``locks_at``, in tests.
_elsewhere: tuple[str, ...] | None = None


class EtcdLocks:
    """All locks of an app, for its tasks and for use without a task. Get it by ``EtcdLocks.from_app(app)``."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._settings: Settings | None = None
        self._broker: str | None = None
        #: By pid: a process's lock manager, and what locks without a task need beside it.
        self._accesses: dict[int, ProcessAccess] = {}
        self._page: LeasePage | None = None
        self._celery_events: CeleryEvents | None = None
        self._more_listeners: list[Listener] = []
        #: Whether the lock store is unreachable, as far as tasks of this process know.
        self.circuit_breaker = CircuitBreaker(lambda: self.settings)

    @classmethod
    def from_app(cls, app: Celery) -> EtcdLocks:
        """The app's locks, always the same object."""
        app = getattr(app, "_get_current_object", lambda: app)()
        locks: EtcdLocks | None = vars(app).get(_ATTRIBUTE)
        if locks is None:
            locks = vars(app).setdefault(_ATTRIBUTE, cls(app))
            _known.add(locks)
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
        return (self._accesses.get(os.getpid()) or self._open()).manager

    def access(self) -> ProcessAccess:
        return self._accesses.get(os.getpid()) or self._open()

    def _open(self) -> ProcessAccess:
        try:
            configured = [find_listener(entry) for entry in self.settings.listeners or ()]
            store, renewal_store = open_stores(self.settings)
        except InvalidSetting as error:
            raise ImproperlyConfigured(str(error)) from None
        manager = LockManager(
            store,
            renewal_store,
            timeout_seconds=self.settings.timeout,
            listener=Listeners([send_signal, *configured, *self._more_listeners]),
            done_seconds=self.settings.done_ttl,
            page=self._page,
        )
        pid = os.getpid()
        _in_use.add(self)
        access = self._accesses.setdefault(pid, ProcessAccess(manager, lambda: open_deletions(self.settings)))
        for other in [other for other in self._accesses if other != pid]:
            self._accesses.pop(other, None)  # the parent's, which it had before the fork
        return access

    def look_after_children(self) -> Guardian | None:
        """Have the locks of forked processes freed when these die. Call it before the first fork.

        Returns the guardian, to be started once; ``None`` where processes don't share locks.
        """
        if self.settings.in_memory:
            return None
        self._page = LeasePage()
        self.close()  # what there is of a manager doesn't know the page
        _, store = open_stores(self.settings)
        return Guardian(self._page, store)

    def lock(
        self,
        name: str | Sequence[str],
        *,
        wait_timeout: float | None = 0.0,
        lock_ttl: int | None = None,
        limit: int = 1,
        note: str | None = None,
        on_lost: Callable[[HeldLock], object] | None = None,
    ) -> EtcdLock:
        """A lock without a task, for threads and greenlets: a context manager, with ``acquire`` and ``release``.

        ``name`` is the whole name: a task with ``lock_key=name`` competes for the same lock. A list of names locks all
        of them, or none. ``wait_timeout`` is how many seconds to wait, in order of arrival; 0 tries once, ``None``
        waits for ever. ``lock_ttl`` is after how many seconds a dead holder's lock is free. ``limit`` is how many may
        hold it at once, as a task's ``lock_limit``. ``note`` tells operators its purpose. ``on_lost`` is called with
        the ``HeldLock`` when it is lost, in the thread that renews (a real one, also under gevent), and must return
        soon. Raises ``ValueError``.
        """
        return EtcdLock(
            self, name, wait_timeout=wait_timeout, lock_ttl=lock_ttl, limit=limit, note=note, on_lost=on_lost
        )

    def alock(
        self,
        name: str | Sequence[str],
        *,
        wait_timeout: float | None = 0.0,
        lock_ttl: int | None = None,
        limit: int = 1,
        note: str | None = None,
        on_lost: Callable[[HeldLock], object] | None = None,
    ) -> AsyncEtcdLock:
        """The same for asyncio: ``async with``, ``await lock.acquire()``. ``on_lost`` is called in the event loop."""
        # Here, for what asyncio costs to import.
        from celery_etcdlock.standalone.async_etcd_lock import AsyncEtcdLock

        return AsyncEtcdLock(
            self, name, wait_timeout=wait_timeout, lock_ttl=lock_ttl, limit=limit, note=note, on_lost=on_lost
        )

    @property
    def is_open(self) -> bool:
        """Whether this process has a manager already."""
        return os.getpid() in self._accesses

    def etcd_key(self, name: str, token: str) -> bytes:
        """Where a place lies in etcd. Raises ``EtcdLockError`` where the locks aren't in an etcd."""
        return etcd_key(self.settings, name, token)

    def record(
        self,
        delivery: Delivery,
        task: str,
        limit: int = 1,
        about: str | None = None,
        kind: KeyKind = KeyKind.HELD,
    ) -> Record:
        """What is stored under a lock that this process takes now."""
        if self._broker is None:
            self._broker = broker_fingerprint(self._app)
        since = round(time.time(), 3)
        return Record(delivery, task, host_name(), os.getpid(), since, limit, self._broker, kind=kind, about=about)

    def holders(self, name: str) -> tuple[Key, ...]:
        """Who holds the lock ``name`` now, then who waits, in order. Raises ``LockUnavailable``."""
        return self.manager.claims.look(name)

    def send_celery_events(self, hostname: str) -> None:
        """From now on, publish lock events as Celery events of the worker ``hostname``. Call it before a fork."""
        self._celery_events = CeleryEvents(self._app, hostname)
        self.add_listener(self._celery_events)

    def add_listener(self, listener: Listener) -> None:
        """Call ``listener`` with each event from now on, here and in processes that are forked later."""
        self._more_listeners.append(listener)
        self._close_access()  # which doesn't know it

    def close(self) -> None:
        """Close this process's connections, and revoke its lease if no lock needs it any more."""
        self._close_access()
        if self._celery_events is not None:
            self._celery_events.close()

    def _close_access(self) -> None:
        access = self._accesses.pop(os.getpid(), None)
        if access is not None:
            access.close()
            access.manager.close()
            _in_use.discard(self)


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
    _close_all()
    for locks in list(_known):
        locks._settings = None


def _close_all(**_: object) -> None:
    for locks in list(_in_use):
        locks.close()


# A pool's child ends without atexit, any other process without the signal.
worker_process_shutdown.connect(_close_all, weak=False)
atexit.register(_close_all)
