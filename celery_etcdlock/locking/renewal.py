"""Keeps the sessions of one process: opens them, renews them, tells of losses, does their pending deletes.

There is one session for each TTL in use, and one real thread for all of them, the only one of this package. Each
session is renewed every third of its TTL, with jitter so that a thousand workers don't renew in step. An attempt that
fails is repeated soon; what ends a session is its deadline, or the store's word that it is gone.

A renewal costs a bounded number of requests, however many locks the process holds. It always looks at the session's own
key, which tells whether the lease lives, and with it all its locks. Keys that somebody deleted one by one are found by
looking at all held keys in turn, up to 1,200 in each renewal.

A lock that its holder forgot (``drop``) is released by the thread, too: nobody else would, and it would be renewed for
as long as the process lives.

After each renewal that worked the thread does the session's *pending deletes*: releases that got no answer, and
doubtful tokens (``session.PendingDelete``); and then the deletes that hang on no session that is renewed
(``pending_deletes``). With the lease of a session that is lost all its keys go, so the thread revokes the lease, or
leaves it to run out when the store is away or a mark is still pending. A session that nobody has used for a while is
closed.

The thread uses a store of its own, so that no other request can queue in front of a renewal.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable

from celery_etcdlock.core.protocol import Renew, Renewed, SessionLost, Unavailable
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.done_marks import DoneMarks
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.lease_page import LeasePage
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.open_sessions import OpenSessions
from celery_etcdlock.locking.pending_deletes import EndedRun, PendingCleanup, flush
from celery_etcdlock.locking.session import PendingDelete, Session, Use
from celery_etcdlock.native import Alarm, allocate_mutex, start_thread

logger = logging.getLogger("celery_etcdlock")

#: How many held keys are looked at in one renewal.
KEYS_PER_RENEWAL = 1200

#: Seconds after which an unused session is closed, or two TTLs if that is more.
IDLE_SECONDS = 60.0

#: Seconds between two tries of what is pending, or to renew after a failure (a tenth of the TTL if that is less).
RETRY_SECONDS = 1.0

#: What is scheduled wakes the thread. A signal may strike in between, so the thread looks now and then by itself.
LONGEST_SLEEP_SECONDS = 60.0

#: How long the end of a process may take to put marks, and then to delete what is pending, in seconds.
LAST_SECONDS = 2.0


class SessionKeeper:
    """The sessions of this process. ``on_lost`` is called in the renewal's thread for each lock that is lost."""

    def __init__(
        self,
        store: LockStore,
        renewal_store: LockStore,
        clock: Clock,
        marks: DoneMarks,
        *,
        on_lost: Callable[[Lock], None],
        page: LeasePage | None = None,
    ) -> None:
        self._store = store
        self._renewal_store = renewal_store
        self._clock = clock
        self._on_lost = on_lost
        self._alarm = Alarm()
        self._sessions = OpenSessions(store, clock, page, self._wake, on_abandoned=lambda _: self._alarm.ring())
        self._cleanup = PendingCleanup(clock, marks)
        self._pending_marks = marks.pending
        #: Locks that were lost alone, while their session lives: their holders are to be interrupted.
        self._lost_alone: deque[Lock] = deque()
        #: Locks that nobody refers to any more, and why. Filled by finalizers.
        self._dropped: deque[tuple[Lock, str]] = deque()
        #: Locked by the thread that renews. One that finds it locked ends: a strike may leave two to be started.
        self._running = allocate_mutex()
        self._stopped = False
        self._pid = os.getpid()

    # --- for the tasks' threads -----------------------------------------------------------------------------

    def enter(self, ttl_seconds: int, deadline: float, use: Use) -> Session:
        """The open session with this TTL, kept so until ``use`` leaves. Raises ``LockUnavailable`` by ``deadline``."""
        session = self.enter_at_once(ttl_seconds, use)
        if session is None:
            session = self._sessions.enter_or_open(ttl_seconds, deadline, use)
            self._wake()
        return session

    def enter_at_once(self, ttl_seconds: int, use: Use) -> Session | None:
        """The same if it is open already, and renewed; else ``None``: asks nobody."""
        session = self._sessions.enter(ttl_seconds, use)
        return session if self._running.locked() else None

    def _wake(self) -> None:
        if not self._running.locked():
            start_thread(self._run, "celery-etcdlock-renewal")
        self._alarm.ring()

    def renew(self, session: Session) -> bool:
        """Renew now, in the caller's thread. Returns whether the session may be trusted for longer."""
        return self._renew(session, self._store)

    def adopt(self, session: Session) -> None:
        """Do the pending deletes of a session whose lease isn't renewed."""
        self._cleanup.adopt(session)
        self._wake()

    def schedule_release(self, pending: PendingDelete | EndedRun) -> None:
        """Have keys on anybody's lease deleted: one as of its ``mod_revision``, or those of a run that has ended."""
        self._cleanup.releases.schedule_delete(pending)
        self._wake()

    def schedule_mark(self, delivery: Delivery) -> None:
        """Have this run marked as ended, before any pending delete is done."""
        self._pending_marks.add(delivery)
        self._wake()

    def drop(self, lock: Lock, why: str) -> None:
        """Have a lock that its holder forgot released. May be called by a finalizer: takes no mutex."""
        self._dropped.append((lock, why))
        self._alarm.ring()

    def stop(self) -> None:
        """Do what is pending, revoke the leases on which nothing hangs and end the thread.

        Locks still held are no longer renewed.
        """
        self._stopped = True
        self._alarm.ring()
        self._cleanup.put_marks(LAST_SECONDS)
        for session in self._sessions.forget_all():
            if session.close_if_idle(0) or session.close_if_only_pending_deletes():
                self._sessions.revoke(session.lease, self._store)
        self._cleanup.flush_at_the_end(self._store, LAST_SECONDS)

    def give_up(self) -> None:
        """End all sessions now, whatever hangs on them, and open none any more: for a process that ends."""
        self._sessions.given_up = self._stopped = True
        for session in self._sessions.forget_all():
            session.lose("its process ends")
            self._sessions.revoke(session.lease, self._store)
        self._alarm.ring()

    # --- the renewal's thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        if not self._running.acquire(blocking=False):
            return
        while not self._stopped and os.getpid() == self._pid:
            try:
                self._alarm.wait(self._round())
            except Exception:
                # Whatever it was, the locks of this process depend on the next attempt.
                logger.exception("celery-etcdlock: the renewal failed unexpectedly and goes on")
                self._alarm.wait(RETRY_SECONDS)

    def _round(self) -> float:
        """Do what is due. Returns the seconds until something is due again."""
        while self._dropped:
            lock, why = self._dropped.popleft()
            logger.error("celery-etcdlock: lock %r is released now: %s", lock.name, why)
            lock.session.hurry(lock, lock.pending_delete)
        sessions = self._sessions.all()
        lost = [session for session in sessions if session.lost_reason() is not None]
        # All holders hear of it before any request that may take long: by now their time is over.
        for session in lost:
            for lock in session.held():
                if session.end_hold(lock):
                    lock.lose(session.lost_reason() or "lost")
                    self._tell(lock)
        while self._lost_alone:
            self._tell(self._lost_alone.popleft())
        for session in lost:
            self._bury(session)
        for session in sessions:
            if session.lost_reason() is not None:
                continue  # just buried, or lost in this round: the next one begins at once
            if session.closed or session.close_if_idle(max(IDLE_SECONDS, 2 * session.ttl_seconds)):
                self._bury(session)
            elif self._clock() >= session.renew_at:
                if self._renew(session, self._renewal_store):
                    session.schedule_renewal()
                    self._flush(session)
                else:
                    session.schedule_renewal(min(RETRY_SECONDS, session.ttl_seconds / 10))
            elif session.pending_deletes():
                self._flush(session)
        self._flush_others()
        return self._seconds_to_next()

    def _seconds_to_next(self) -> float:
        sessions = self._sessions.all()
        if self._lost_alone or any(session.lost_reason() is not None for session in sessions):
            return 0.0
        due = [min(session.renew_at, session.deadline) for session in sessions]
        now = self._clock()
        deletes_due = [session.next_delete_due() for session in sessions]
        due += [max(now + RETRY_SECONDS, delete_due) for delete_due in deletes_due if delete_due is not None]
        if self._pending_marks or self._cleanup.due():
            due.append(now + RETRY_SECONDS)
        return min([LONGEST_SLEEP_SECONDS, *(max(0.0, each - now) for each in due)])

    def _next_renewal(self) -> float:
        return min((session.renew_at for session in self._sessions.all()), default=float("inf"))

    def _renew(self, session: Session, store: LockStore) -> bool:
        # One attempt must leave time for another, and must not make other sessions late.
        patience = max(session.ttl_seconds / 4, 0.5)
        # When some session's time is over its holders must hear of it then, whatever this one waits for.
        deadlines = [other.deadline for other in self._sessions.all() if other.lost_reason() is None]
        answer_by = min([session.deadline, *deadlines, self._clock() + patience])
        machine = Renew(lease=session.lease, keys=session.next_to_check(KEYS_PER_RENEWAL), deadline=answer_by)
        outcome = drive(machine, store, self._clock, sleep=_pause)
        if isinstance(outcome, SessionLost):
            session.lose(outcome.reason)
            self._alarm.ring()
            return False
        if isinstance(outcome, Unavailable):
            logger.warning(
                "celery-etcdlock: a renewal failed (%s); the locks of this process are safe for another %.1f s",
                outcome.error,
                session.remaining(),
            )
            return False
        session.renewed(outcome.deadline)
        self._lose_single_locks(session, outcome)
        return session.lost_reason() is None

    def _lose_single_locks(self, session: Session, outcome: Renewed) -> None:
        """Those whose key is gone, and those that somebody asked for, which stay held until their holder releases."""
        asked = {each.token: each for each in outcome.asked}
        for lock in session.held() if outcome.missing or asked else ():
            ask = asked.get(lock.token)
            if lock.key in outcome.missing:
                if not session.end_hold(lock):
                    continue  # released meanwhile: it is missing because we released it
                lock.lose("its key was deleted or overwritten by somebody else")
            elif ask is not None and ask.revision > lock.fencing_token and not lock.lost:
                lock.lose(f"{ask.by} asked its holder to release it")
            else:
                continue
            # The thread tells, since this may be the holder's own, which a loss may interrupt.
            self._lost_alone.append(lock)
            self._alarm.ring()

    def _tell(self, lock: Lock) -> None:
        try:
            self._on_lost(lock)
        except Exception:
            logger.exception("celery-etcdlock: a listener failed on the loss of lock %r", lock.name)

    def _bury(self, session: Session) -> None:
        self._sessions.forget(session.lease)
        if self._may_flush():
            self._sessions.revoke(session.lease, self._renewal_store)
        else:
            # A lock of it may be one whose run isn't marked yet: whoever gets it then would run that once more.
            self._sessions.strike_out(session.lease)

    def _may_flush(self) -> bool:
        """Whether all marks are put."""
        return not self._pending_marks or self._cleanup.put_marks(
            min(RETRY_SECONDS, max(0.0, self._next_renewal() - self._clock()))
        )

    def _flush(self, session: Session) -> None:
        if not self._may_flush():
            return
        answer_by = min(session.deadline, session.renew_at, self._clock() + RETRY_SECONDS)
        if flush(session, self._renewal_store, self._clock, answer_by, _pause):
            if session.pending_deletes():  # more than are done at a time: a turn for the others, and go on
                self._alarm.ring()
        # A store that is full refuses even a guarded delete, but ends a lease. Nothing else hangs on this one;
        # if it can't be ended either, it isn't renewed any more.
        elif session.close_if_only_pending_deletes():
            self._bury(session)

    def _flush_others(self) -> None:
        for source in self._cleanup.due() if self._may_flush() else ():
            answer_by = min(self._clock() + RETRY_SECONDS, self._next_renewal())
            flush(source, self._renewal_store, self._clock, answer_by, _pause)


def _pause(seconds: float) -> None:
    # time.sleep belongs to the hub under gevent; this is a real thread's.
    Alarm().wait(seconds)
