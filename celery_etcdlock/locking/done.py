"""Marks that a delivery has come to its end, by which its redelivered copies know that there is nothing left to do.

A mark is put before the lock is released, so whoever owns the lock afterwards and looks can't miss it; the result
backend can't serve for this, since a result is stored only after the release (rule 7). Marks lie on the leases that
locks without renewal share, and are gone a while later: that is how late a copy may come and still be known.

Why not in the release's own transaction: before it is as safe, for a process that dies between the two has come to its
end; a task may hold several locks, or hand its lock on, or hold none any more, and each of these ends would have to
carry the mark, and so would a release that is repeated as a debt. In etcd a put on a lease that has ended fails the
whole transaction, so one stale lease of marks would fail the releases of all who share it (``group_commit``).
"""

from __future__ import annotations

from celery_etcdlock.core.operations import (
    LookForDone,
    MarkDone,
)
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.core.replies import (
    DoneSeen,
    SessionGone,
)
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.pending import PendingLocks
from celery_etcdlock.locking.store import LockStore

__all__ = ["DONE_SECONDS", "DoneMarks"]

#: How long a mark is known, at least, in seconds, unless told otherwise.
DONE_SECONDS = 600.0


class DoneMarks:
    """See the module. Both methods raise ``LockUnavailable`` where the store can't be asked."""

    def __init__(
        self,
        pending: PendingLocks,
        store: LockStore,
        clock: Clock,
        timeout_seconds: float,
        done_seconds: float = DONE_SECONDS,
    ) -> None:
        self._done_seconds = done_seconds
        self._pending = pending
        self._store = store
        self._clock = clock
        self._timeout_seconds = timeout_seconds

    def put(self, delivery: Delivery) -> None:
        """Mark the delivery as ended."""
        deadline = self._clock() + self._timeout_seconds
        while True:
            session = self._pending.session(self._done_seconds, deadline)
            seconds_left = deadline - self._clock()
            if seconds_left <= 0:
                raise LockUnavailable("the lock store gave no answer in time")
            reply = self._store.perform(MarkDone(session.lease, delivery), seconds_left)
            if not isinstance(reply, SessionGone):
                return
            session.lose("its lease has ended or was revoked")

    def seen(self, delivery: Delivery) -> bool:
        """Whether the delivery is marked as ended."""
        reply = self._store.perform(LookForDone(delivery), self._timeout_seconds)
        return isinstance(reply, DoneSeen) and reply.done
