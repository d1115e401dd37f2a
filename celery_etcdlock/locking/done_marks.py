"""Marks that a run of a call has come to its end, by which copies of its message know that there is nothing left to do.

Every message may have a copy: its broker forgets an acknowledgement, or doesn't wait for one, and gives it out again.
The first of the two can't know, and a copy is known as such only if the broker says so. So every run leaves a mark, and
every run looks for one, whichever of the copies comes first.

A mark is put before the lock is released or in the same moment, so whoever owns the lock afterwards and looks can't
miss it; the result backend can't serve for this, since a result is stored only after the release (rule 7). In the
common case neither costs a request: the acquire's transaction reads it, the release's puts it. A task that holds
several locks, hands its lock on, or holds none any more, puts it by itself, before.

Marks lie on shared leases of their own, and are gone a while later: that is how late a copy may come and still be
known. One that can't be put for now is pending, and comes before pending deletes (``renewal``). A mark names the
call, so another call under the same task id isn't taken for a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from celery_etcdlock.core.operations import LookForDone, MarkDone
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.core.replies import DoneSeen, SessionGone
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.session import Session
from celery_etcdlock.locking.shared_leases import SharedLeases

#: How long a mark is known, at least, in seconds, by default.
DONE_SECONDS = 600.0

#: The part of that time by which a mark may stand for longer: many share a lease, and each is a key in the store.
SPREAD = 0.1


class PendingMarks:
    """Runs of this process that have come to their end and aren't marked yet, or may not be.

    A run is here from before its mark is first tried: a lock whose lease ends meanwhile isn't freed before the mark.
    """

    def __init__(self) -> None:
        self._runs: dict[tuple[Delivery, str | None], None] = {}

    def add(self, run: Delivery) -> None:
        self._runs[run, run.call] = None

    def discard(self, run: Delivery) -> None:
        self._runs.pop((run, run.call), None)

    def __contains__(self, run: Delivery) -> bool:
        return (run, run.call) in self._runs

    def __iter__(self) -> Iterator[Delivery]:
        return iter([run for run, _ in list(self._runs)])

    def __bool__(self) -> bool:
        return bool(self._runs)


class DoneMarks:
    """See the module. ``put`` and ``seen`` raise ``LockUnavailable`` where the store can't be asked."""

    def __init__(
        self,
        store: LockStore,
        clock: Clock,
        timeout_seconds: float,
        done_seconds: float = DONE_SECONDS,
        schedule_mark: Callable[[Delivery], None] | None = None,
        pending: PendingMarks | None = None,
    ) -> None:
        self._schedule_mark = schedule_mark
        self.pending = PendingMarks() if pending is None else pending
        self._done_seconds = done_seconds
        self._leases = SharedLeases(store, clock, SPREAD)
        self._store = store
        self._clock = clock
        self._timeout_seconds = timeout_seconds

    def mark(self, delivery: Delivery, deadline: float) -> MarkDone | None:
        """The mark, to be put by a release; ``None`` when there is no lease for it by ``deadline``."""
        try:
            return MarkDone(self._session(deadline).lease, delivery)
        except LockUnavailable:
            return None

    def put_in_the_end(self, delivery: Delivery) -> None:
        """Mark the delivery as ended: now, or when the store answers again. Never raises for the store's sake."""
        self.pending.add(delivery)
        try:
            self.put(delivery)
            self.pending.discard(delivery)
        except BaseException as error:
            if self._schedule_mark is not None:
                self._schedule_mark(delivery)
            if not isinstance(error, LockUnavailable):
                raise

    def put(self, delivery: Delivery, timeout_seconds: float | None = None) -> None:
        """Mark the delivery as ended."""
        deadline = self._clock() + (self._timeout_seconds if timeout_seconds is None else timeout_seconds)
        while True:
            session = self._session(deadline)
            seconds_left = deadline - self._clock()
            if seconds_left <= 0:
                raise LockUnavailable("the lock store gave no answer in time")
            reply = self._store.perform(MarkDone(session.lease, delivery), seconds_left)
            if not isinstance(reply, SessionGone):
                return
            session.lose("its lease has ended or was revoked")

    def _session(self, deadline: float) -> Session:
        return self._leases.take(self._done_seconds, 1, deadline)

    def seen(self, delivery: Delivery) -> bool:
        """Whether the delivery is marked as ended."""
        reply = self._store.perform(LookForDone(delivery), self._timeout_seconds)
        return isinstance(reply, DoneSeen) and reply.done
