"""Opens a session: a lease under an id of our own, and the session's key on it."""

from __future__ import annotations

import secrets

from celery_etcdlock.core.ownership import trust_deadline
from celery_etcdlock.core.protocol import Open, Opened, Unavailable
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.lease_page import LeasePage
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.session import Session


def open_session(
    ttl_seconds: int,
    deadline: float,
    store: LockStore,
    clock: Clock,
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
            return Session(lease, outcome, clock, page)
        if page is not None:
            page.leave(lease)
        if isinstance(outcome, Unavailable):
            raise outcome.error
        if clock() >= deadline:
            raise LockUnavailable(f"no session could be opened in time: {outcome.reason}")
