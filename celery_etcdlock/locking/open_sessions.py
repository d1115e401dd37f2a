"""Opens sessions, one for each TTL in use: a lease under an id of our own, and the session's key on it."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from celery_etcdlock.core.operations import RevokeLease
from celery_etcdlock.core.ownership import trust_deadline
from celery_etcdlock.core.protocol import Open, Opened, Unavailable
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.lease_page import LeasePage
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.session import Session, Use
from celery_etcdlock.native import unlock

logger = logging.getLogger("celery_etcdlock")

Result = TypeVar("Result")

#: How long the revocation of a lease may take, in seconds.
REVOKE_SECONDS = 1.0


class OpenSessions:
    """The sessions of a process that are renewed. They are written on ``page``, if there is one, for its parent.

    ``on_opened`` is called when there is one more to renew.
    """

    def __init__(
        self,
        store: LockStore,
        clock: Clock,
        page: LeasePage | None,
        on_opened: Callable[[], object],
        on_abandoned: Callable[[Session], object],
    ) -> None:
        self._store = store
        self._clock = clock
        self._page = page
        self._on_opened = on_opened
        self._on_abandoned = on_abandoned
        # Held across I/O, so a greenlet's under gevent; the renewal's thread never takes it.
        self._opening: Any = threading.RLock()
        #: By lease, also those that were lost or closed and aren't buried yet.
        self._all: dict[int, Session] = {}
        #: The newest for each TTL.
        self._newest: dict[int, Session] = {}
        #: No more are opened: the process ends.
        self.given_up = False

    def all(self) -> list[Session]:
        return list(self._all.copy().values())

    def enter(self, ttl_seconds: int, use: Use) -> Session | None:
        """The open session with this TTL, kept so until ``use`` leaves; ``None`` if there is none."""
        session = self._newest.get(ttl_seconds)
        return session if session is not None and session.enter(use) else None

    def enter_or_open(self, ttl_seconds: int, deadline: float, use: Use) -> Session:
        """The same, opened if there is none, by one caller for all. Raises ``LockUnavailable`` by ``deadline``."""
        return alone(
            self._opening,
            lambda: self.enter(ttl_seconds, use) or self._open(ttl_seconds, deadline, use),
            deadline - self._clock(),
            "a session",
        )

    def _open(self, ttl_seconds: int, deadline: float, use: Use) -> Session:
        if self.given_up:
            raise LockUnavailable("this process has given up all its locks, since it ends", permanent=True)
        leases: list[int] = []
        try:
            session = open_session(
                ttl_seconds, deadline, self._store, self._clock, self._on_abandoned, page=self._page, leases=leases
            )
            session.enter(use)
            session.schedule_renewal()
            self._all[session.lease] = session
            self._on_opened()  # before anybody else gets it, for nobody gets one that isn't renewed
            # The one before is lost or closed; the renewal's thread says so and revokes its lease.
            self._newest[ttl_seconds] = session
        except BaseException:
            # Struck half-way: what isn't renewed by us nobody may go on renewing for us (``child_lease_guardian``).
            for lease in leases:
                if lease not in self._all:
                    self.strike_out(lease)
            raise
        if session.ttl_seconds > ttl_seconds:
            logger.warning(
                "etcd's least TTL is %s s, more than the %s s asked for (etcdlock_ttl or lock_ttl): a dead worker's "
                "locks stay for %s s. Raise the setting, or lower etcd's --election-timeout.",
                session.ttl_seconds,
                ttl_seconds,
                session.ttl_seconds,
            )
        return session

    def forget(self, lease: int) -> None:
        """It isn't renewed any more."""
        self._all.pop(lease, None)

    def forget_all(self) -> list[Session]:
        sessions = self.all()
        self._newest.clear()
        self._all.clear()
        return sessions

    def revoke(self, lease: int, store: LockStore) -> None:
        revoke(lease, store)
        self.strike_out(lease)

    def strike_out(self, lease: int) -> None:
        """From the page: the lease is left to run out."""
        if self._page is not None:
            self._page.leave(lease)


def open_session(
    ttl_seconds: int,
    deadline: float,
    store: LockStore,
    clock: Clock,
    on_abandoned: Callable[[Session], object] | None = None,
    *,
    page: LeasePage | None = None,
    leases: list[int] | None = None,
) -> Session:
    """A new session by ``deadline``; its TTL may be longer than asked for. Raises ``LockUnavailable``.

    ``leases`` is given the id of each lease before it is asked for.
    """
    while True:
        lease = secrets.randbits(62) + 1
        if leases is not None:
            leases.append(lease)
        if page is not None:
            # Before it is granted, so that whatever happens to us now, our parent knows of it (rule 10).
            page.enter(lease, ttl_seconds, trust_deadline(clock(), ttl_seconds))
        outcome = drive(Open(lease=lease, ttl_seconds=ttl_seconds, deadline=deadline), store, clock)
        if isinstance(outcome, Opened):
            return Session(lease, outcome, clock, page, on_abandoned)
        if page is not None:
            page.leave(lease)
        if isinstance(outcome, Unavailable):
            raise outcome.error
        if clock() >= deadline:
            raise LockUnavailable(f"no session could be opened in time: {outcome.reason}")


def alone(mutex: Any, open_one: Callable[[], Result], seconds: float, what: str) -> Result:
    """``open_one``, when nobody else does. Raises ``LockUnavailable`` if that takes more than so many seconds."""
    try:
        try:
            if not mutex.acquire(timeout=max(0.0, seconds)):
                raise LockUnavailable(f"the lock store gave no answer in time while {what} was opened")
            return open_one()
        finally:
            unlock(mutex)
    finally:
        # Once more: a signal may have struck in the first.
        unlock(mutex)


def revoke(lease: int, store: LockStore) -> bool:
    """End a lease, and all keys on it. False when the store doesn't answer: then it is left to run out."""
    try:
        store.perform(RevokeLease(lease), REVOKE_SECONDS)
    except LockUnavailable as error:
        logger.debug("lease %x isn't revoked: %s", lease, error)
        return False
    return True
