"""Leases that collect garbage: shared by many keys that say themselves until when they stand (rule 11).

A lease outlives its keys, takes up to `KEYS_PER_LEASE` of them, and is never renewed, so a producer may end at once,
and the age of the lease tells whoever asks whether a key's time is over (``core.expiry``). Leases come in sizes of
powers of two. One of size S lives for twice S and takes keys that stand for at most S seconds, for as long as it is
itself no older than S. Where keys aren't to outlive their time by as much, ``spread`` is lower: a lease takes keys for
that part of the time for which they stand, and all its keys stand for about as long. Each carries a session of its own,
whose epoch fences the producer's late requests as a worker's does (rule 3). What stays in doubt is a pending delete
of that session, which a thread does (``renewal``).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.open_sessions import alone, open_session
from celery_etcdlock.locking.session import Session

KEYS_PER_LEASE = 2000
SMALLEST_LEASE_SECONDS = 64


class SharedLeases:
    """See the module. Raises ``LockUnavailable`` where none can be opened before ``deadline``, on ``clock``."""

    def __init__(
        self,
        store: LockStore,
        clock: Clock,
        spread: float = 1.0,
        on_abandoned: Callable[[Session], object] | None = None,
    ) -> None:
        self._spread = spread
        self._store = store
        self._clock = clock
        self._on_abandoned = on_abandoned
        # Held across I/O, so a greenlet's under gevent.
        self._opening: Any = threading.RLock()
        self._leases: dict[int, _Lease] = {}

    def take(self, seconds: float, keys: int, deadline: float) -> Session:
        """The session on whose lease ``keys`` keys may be put that stand for ``seconds``."""
        size = SMALLEST_LEASE_SECONDS if self._spread >= 1 else math.ceil(seconds)
        while size < seconds:
            size *= 2
        return alone(self._opening, lambda: self._take(size, keys, deadline), deadline - self._clock(), "a lease")

    def _take(self, size: int, keys: int, deadline: float) -> Session:
        lease = self._leases.get(size)
        if lease is None or not lease.takes(keys, self._clock()):
            opened_at = self._clock()
            takes_for = math.ceil(size * self._spread)
            session = open_session(size + takes_for, deadline, self._store, self._clock, self._on_abandoned)
            lease = self._leases[size] = _Lease(session, opened_at + takes_for)
        lease.keys += keys
        return lease.session


@dataclass(eq=False)
class _Lease:
    """One shared lease: takes keys until ``closes_at``, on the driver's clock, or until it is full."""

    session: Session
    closes_at: float
    keys: int = 0

    def takes(self, keys: int, now: float) -> bool:
        return now < self.closes_at and self.keys + keys <= KEYS_PER_LEASE and self.session.lost_reason() is None
