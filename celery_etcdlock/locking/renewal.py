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
doubtful tokens (``session.PendingDelete``). It also does those on leases that aren't renewed (claims and queue
positions), and releases of keys that a message brought along: once a second until the store answers, and for a moment
at the end of the process. Marks that a run has ended come first (``done_marks``), for whoever gets a lock that is
released must find them. With the lease of a session that is lost all its keys go, so the thread revokes the lease, or
leaves it to run out when the store is away or a mark is still pending. A session that nobody has used for a while is
closed.

The thread uses a store of its own, so that no other request can queue in front of a renewal.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from celery_etcdlock.core.operations import RevokeLease
from celery_etcdlock.core.protocol import Renew, Renewed, SessionLost, Unavailable
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.done_marks import DoneMarks, PendingMarks
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.lease_page import LeasePage
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.open_session import open_session
from celery_etcdlock.locking.pending_deletes import EndedRun, HasPendingDeletes, Releases, flush
from celery_etcdlock.locking.session import PendingDelete, Session, Use
from celery_etcdlock.native import Alarm, allocate_mutex, start_thread, unlock

logger = logging.getLogger("celery_etcdlock")

#: Fraction of the TTL after which a session is renewed.
RENEW_AFTER = 1 / 3

#: How many held keys are looked at in one renewal.
KEYS_PER_RENEWAL = 1200

#: Seconds after which an unused session is closed, or two TTLs if that is more.
IDLE_SECONDS = 60.0

#: Seconds between two tries of what is pending, or to renew after a failure (a tenth of the TTL if that is less).
RETRY_SECONDS = 1.0

#: How long the revocation of a lost or idle session may take, in seconds.
REVOKE_SECONDS = 1.0

#: How long the end of a process may take to do what is pending, in seconds. The rest stands until its time is over.
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
        self._page = page
        # Held across I/O, so a greenlet's under gevent; the renewal's thread never takes it.
        self._opening: Any = threading.RLock()
        #: By lease, also those that were lost or closed and aren't buried yet.
        self._sessions: dict[int, Session] = {}
        #: The newest for each TTL.
        self._newest: dict[int, Session] = {}
        #: Sessions on leases that aren't renewed, while they have pending deletes.
        self._unrenewed: dict[int, Session] = {}
        self._releases = Releases()
        #: Runs to be marked as ended, before any pending delete is done.
        self.pending_marks = PendingMarks()
        self._marks = marks
        self._alarm = Alarm()
        #: Locks that were lost alone, while their session lives, and whose holders haven't been told yet.
        self._untold: deque[Lock] = deque()
        #: Locks that nobody refers to any more, and why. Filled by finalizers.
        self._dropped: deque[tuple[Lock, str]] = deque()
        #: Locked by the thread that renews. One that finds it locked ends: a strike may leave two to be started.
        self._running = allocate_mutex()
        self._stopped = False
        self._given_up = False
        self._pid = os.getpid()

    # --- for the tasks' threads -----------------------------------------------------------------------------

    def enter(self, ttl_seconds: int, deadline: float, use: Use) -> Session:
        """The open session with this TTL, kept so until ``use`` leaves. Raises ``LockUnavailable`` by ``deadline``."""
        session = self._live(ttl_seconds, use)
        if session is not None and self._running.locked():
            return session
        try:
            return self._enter_alone(ttl_seconds, deadline, use)
        finally:
            # Once more: a signal may have struck in the first.
            unlock(self._opening)

    def enter_at_once(self, ttl_seconds: int, use: Use) -> Session | None:
        """The same if it is open already, else ``None``: asks nobody."""
        session = self._live(ttl_seconds, use)
        return session if self._running.locked() else None

    def _enter_alone(self, ttl_seconds: int, deadline: float, use: Use) -> Session:
        try:
            if not self._opening.acquire(timeout=max(0.0, deadline - self._clock())):
                raise LockUnavailable("the lock store gave no answer in time while a session was opened")
            session = self._live(ttl_seconds, use) or self._open(ttl_seconds, deadline, use)
            self._wake()
            return session
        finally:
            unlock(self._opening)

    def _live(self, ttl_seconds: int, use: Use) -> Session | None:
        session = self._newest.get(ttl_seconds)
        return session if session is not None and session.enter(use) else None

    def _open(self, ttl_seconds: int, deadline: float, use: Use) -> Session:
        if self._given_up:
            raise LockUnavailable("this process has given up all its locks, since it ends", permanent=True)
        leases: list[int] = []
        try:
            session = open_session(ttl_seconds, deadline, self._store, self._clock, self._page, leases)
            session.enter(use)
            self._schedule(session, session.ttl_seconds * RENEW_AFTER)
            self._sessions[session.lease] = session
            # The one before is lost or closed; the thread says so and revokes its lease.
            self._newest[ttl_seconds] = session
        except BaseException:
            # Struck half-way: what isn't renewed by us nobody may go on renewing for us (``child_lease_guardian``).
            for lease in leases:
                if lease not in self._sessions:
                    self._strike_out(lease)
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

    def _wake(self) -> None:
        if not self._running.locked():
            start_thread(self._run, "celery-etcdlock-renewal")
        self._alarm.ring()

    def renew(self, session: Session) -> bool:
        """Renew now, in the caller's thread. Returns whether the session may be trusted for longer."""
        return self._renew(session, self._store)

    def schedule_delete(self, session: Session, pending: PendingDelete, lock: Lock | None = None) -> None:
        """Have ``pending`` done in the background as soon as the store answers, and no longer hold ``lock``."""
        session.abandon(pending, lock)
        self._alarm.ring()

    def hurry(self, session: Session, lock: Lock, pending: PendingDelete) -> None:
        """The same, if the lock is held, or its release is under way."""
        session.hurry(lock, pending)
        self._alarm.ring()

    def schedule_delete_on_shared(self, session: Session, pending: PendingDelete) -> None:
        """The same on a lease that isn't renewed."""
        session.abandon(pending)
        self._unrenewed[session.lease] = session
        self._wake()

    def schedule_release(self, pending: PendingDelete | EndedRun) -> None:
        """The same for keys on anybody's lease: one as of its ``mod_revision``, or those of a run that has ended."""
        self._releases.schedule_delete(pending)
        self._wake()

    def schedule_mark(self, delivery: Delivery) -> None:
        """Have this run marked as ended, before any pending delete is done."""
        self.pending_marks.add(delivery)
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
        self._put_marks(LAST_SECONDS)
        sessions = self._all()
        self._newest.clear()
        self._sessions.clear()
        for session in sessions:
            if session.close_if_idle(0) or session.close_if_only_pending_deletes():
                self._revoke(session, self._store)
        self._flush_at_the_end()

    def _flush_at_the_end(self) -> None:
        deadline = self._clock() + LAST_SECONDS
        while self._clock() < deadline:
            left = self._others_with_pending_deletes()
            if not left or not all(flush(each, self._store, self._clock, deadline) for each in left):
                break
        keys_left = sum(len(each.pending_deletes()) for each in self._others_with_pending_deletes())
        if keys_left:
            logger.warning("celery-etcdlock: %d keys of this process stay in etcd until their time is over", keys_left)

    def give_up(self) -> None:
        """End all sessions now, whatever hangs on them, and open none any more: for a process that ends."""
        self._given_up = self._stopped = True
        sessions = self._all()
        self._newest.clear()
        self._sessions.clear()
        for session in sessions:
            session.lose("its process ends")
            self._revoke(session, self._store)
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

    def _round(self) -> float | None:
        """Do what is due. Returns the seconds until something is due again."""
        self._release_dropped()
        sessions = self._all()
        lost = [session for session in sessions if session.lost_reason() is not None]
        # All holders are told before any request that may take long: by now their time is over.
        for session in lost:
            self._tell_all(session)
        self._tell_untold()
        for session in lost:
            self._bury(session)
        for session in sessions:
            if session.lost_reason() is not None:
                continue  # just buried, or lost in this round: the next one begins at once
            if session.closed or session.close_if_idle(max(IDLE_SECONDS, 2 * session.ttl_seconds)):
                self._bury(session)
            elif self._clock() >= session.renew_at:
                if self._renew(session, self._renewal_store):
                    self._schedule(session, session.ttl_seconds * RENEW_AFTER)
                    self._flush(session)
                else:
                    self._schedule(session, min(RETRY_SECONDS, session.ttl_seconds / 10))
            elif session.pending_deletes():
                self._flush(session)
        self._flush_others()
        return self._seconds_to_next()

    def _put_marks(self, timeout_seconds: float) -> bool:
        """Put the marks that are pending. Returns whether none is left."""
        for delivery in self.pending_marks:
            try:
                self._marks.put(delivery, timeout_seconds)
            except LockUnavailable as error:
                if not error.permanent:
                    return False
                logger.warning(
                    "celery-etcdlock: task %s can't be marked as ended, so a copy of its message would run again: %s",
                    delivery.task_id,
                    error,
                )
            self.pending_marks.discard(delivery)
        return True

    def _may_flush(self) -> bool:
        return not self.pending_marks or self._put_marks(
            min(RETRY_SECONDS, max(0.0, self._next_renewal() - self._clock()))
        )

    def _flush_others(self) -> None:
        if not self._may_flush():
            return
        for each in self._others_with_pending_deletes():
            answer_by = min(self._clock() + RETRY_SECONDS, self._next_renewal())
            flush(each, self._renewal_store, self._clock, answer_by, self._pause)

    def _others_with_pending_deletes(self) -> list[HasPendingDeletes]:
        """What has pending deletes, beside the sessions that are renewed."""
        for lease, session in self._unrenewed.copy().items():
            if session.next_delete_due() is None:
                self._unrenewed.pop(lease, None)
                if session.next_delete_due() is not None:  # since a moment
                    self._unrenewed[lease] = session
        all_others: list[HasPendingDeletes] = [*self._unrenewed.copy().values(), self._releases]
        return [each for each in all_others if each.pending_deletes()]

    def _all(self) -> list[Session]:
        return list(self._sessions.copy().values())

    def _next_renewal(self) -> float:
        return min((session.renew_at for session in self._all()), default=float("inf"))

    def _seconds_to_next(self) -> float | None:
        sessions = self._all()
        if self._untold or any(session.lost_reason() is not None for session in sessions):
            return 0.0
        due = [min(session.renew_at, session.deadline) for session in sessions]
        now = self._clock()
        deletes_due = [session.next_delete_due() for session in sessions]
        due += [max(now + RETRY_SECONDS, delete_due) for delete_due in deletes_due if delete_due is not None]
        if self.pending_marks or self._others_with_pending_deletes():
            due.append(now + RETRY_SECONDS)
        return max(0.0, min(due) - now) if due else None

    def _schedule(self, session: Session, seconds: float) -> None:
        session.renew_at = self._clock() + seconds * random.uniform(0.85, 1.0)

    def _renew(self, session: Session, store: LockStore) -> bool:
        # One attempt must leave time for another, and must not make other sessions late.
        patience = max(session.ttl_seconds / 4, 0.5)
        answer_by = min(self._next_deadline(session), self._clock() + patience)
        machine = Renew(lease=session.lease, keys=session.next_to_check(KEYS_PER_RENEWAL), deadline=answer_by)
        outcome = drive(machine, store, self._clock, sleep=self._pause)
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
        self._tell_missing(session, outcome)
        self._tell_asked(session, outcome)
        return session.lost_reason() is None

    def _next_deadline(self, session: Session) -> float:
        """When some session's time is over: its holders must be told then, whatever this one waits for."""
        others = [other.deadline for other in self._all() if other.lost_reason() is None]
        return min([session.deadline, *others])

    def _tell_missing(self, session: Session, outcome: Renewed) -> None:
        for lock in session.held() if outcome.missing else ():
            # A lock that was released meanwhile isn't in ``held`` any more: it is missing because we released it.
            if lock.key in outcome.missing and session.end_hold(lock):
                lock.lose("its key was deleted or overwritten by somebody else")
                self._untold.append(lock)
                # The thread tells, since this may be the holder's own, which a loss may interrupt.
                self._alarm.ring()

    def _tell_asked(self, session: Session, outcome: Renewed) -> None:
        """Its holder is told as of a loss, but the lock stays its own until it releases: it goes on being renewed."""
        asked = {each.token: each for each in outcome.asked}
        for lock in session.held() if asked else ():
            ask = asked.get(lock.token)
            if ask is not None and ask.revision > lock.fencing_token and not lock.lost:
                lock.lose(f"{ask.by} asked its holder to release it")
                self._untold.append(lock)
                self._alarm.ring()

    def _tell_untold(self) -> None:
        while self._untold:
            self._tell(self._untold.popleft())

    def _release_dropped(self) -> None:
        while self._dropped:
            lock, why = self._dropped.popleft()
            logger.error("celery-etcdlock: lock %r is released now: %s", lock.name, why)
            lock.session.hurry(lock, lock.pending_delete)

    def _tell_all(self, session: Session) -> None:
        reason = session.lost_reason() or "lost"
        for lock in session.held():
            if session.end_hold(lock):
                lock.lose(reason)
                self._tell(lock)

    def _tell(self, lock: Lock) -> None:
        try:
            self._on_lost(lock)
        except Exception:
            logger.exception("celery-etcdlock: a listener failed on the loss of lock %r", lock.name)

    def _bury(self, session: Session) -> None:
        self._sessions.pop(session.lease, None)
        if self._may_flush():
            self._revoke(session, self._renewal_store)
        else:
            # A lock of it may be one whose run isn't marked yet: whoever gets it then would run that once more.
            self._strike_out(session.lease)

    def _revoke(self, session: Session, store: LockStore) -> None:
        try:
            store.perform(RevokeLease(session.lease), REVOKE_SECONDS)
        except LockUnavailable as error:
            logger.debug("lease %x is left to run out: %s", session.lease, error)
        self._strike_out(session.lease)

    def _strike_out(self, lease: int) -> None:
        if self._page is not None:
            self._page.leave(lease)

    def _flush(self, session: Session) -> None:
        if not self._may_flush():
            return
        answer_by = min(session.deadline, session.renew_at, self._clock() + RETRY_SECONDS)
        if flush(session, self._renewal_store, self._clock, answer_by, self._pause):
            if session.pending_deletes():  # more than are done at a time: a turn for the others, and go on
                self._alarm.ring()
            return
        # A store that is full refuses even a guarded delete, but ends a lease. Nothing else hangs on this one;
        # if it can't be ended either, it isn't renewed any more.
        if session.close_if_only_pending_deletes():
            self._bury(session)

    def _pause(self, seconds: float) -> None:
        # time.sleep belongs to the hub under gevent; this is a real thread's.
        Alarm().wait(seconds)
