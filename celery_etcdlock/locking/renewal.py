"""Keeps the sessions of one process: opens them, renews them, tells of losses, pays their debts.

There is one session for each TTL in use, and one real thread for all of them, the only one of this package. Each
session is renewed every third of its TTL, with jitter so that a thousand workers don't renew in step. An attempt that
fails is repeated soon; what ends a session is its deadline, or the store's word that it is gone.

A renewal costs a bounded number of requests, however many locks the process holds. It always looks at the session's own
key, which tells whether the lease lives, and with it all its locks. Keys that somebody deleted one by one are found by
looking at all held keys in turn, up to 1,200 in each renewal.

After each renewal that worked the thread pays the session's *debts*: releases that got no answer, and doubtful tokens
(``session.Debt``). It also pays what is owed on leases that aren't renewed (claims and queue positions), and releases
of keys that a message brought along: once a second until the store answers, and for a moment at the end of the process.
A session that is lost owes nothing any more once its lease is gone, so the thread revokes the lease, or leaves it to
run out when the store is away. A session that nobody has used for a while is closed.

The thread uses a store of its own, so that no other request can queue in front of a renewal.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable

from celery_etcdlock.core.operations import RevokeLease
from celery_etcdlock.core.protocol import (
    Renew,
    Renewed,
    SessionLost,
    Unavailable,
)
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.debts import Debtor, EndedRun, Releases, pay
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.lease_page import LeasePage
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.opening import open_session
from celery_etcdlock.locking.session import Debt, Session
from celery_etcdlock.locking.store import LockStore
from celery_etcdlock.native import Alarm, allocate_mutex, start_thread

__all__ = ["SessionKeeper"]

logger = logging.getLogger("celery_etcdlock")

#: Fraction of the TTL after which a session is renewed.
RENEW_AFTER = 1 / 3

#: How many held keys are looked at in one renewal.
KEYS_PER_RENEWAL = 1200

#: Seconds after which an unused session is closed, or two TTLs if that is more.
IDLE_SECONDS = 60.0

#: Seconds between two tries to pay what is owed, or to renew after a failure (a tenth of the TTL if that is less).
RETRY_SECONDS = 1.0

#: How long the revocation of a lost or idle session may take, in seconds.
REVOKE_SECONDS = 1.0

#: How long the end of a process may take to pay what it owes, in seconds. After that a lease's end pays, or a key's.
LAST_SECONDS = 2.0


class SessionKeeper:
    """The sessions of this process. ``on_lost`` is called in the renewal's thread for each lock that is lost."""

    def __init__(
        self,
        store: LockStore,
        renewal_store: LockStore,
        clock: Clock,
        *,
        on_lost: Callable[[Lock], None],
        page: LeasePage | None = None,
    ) -> None:
        self._store = store
        self._renewal_store = renewal_store
        self._clock = clock
        self._on_lost = on_lost
        self._page = page
        self._mutex = allocate_mutex()
        # Held across I/O, so a greenlet's under gevent; the renewal's thread never takes it.
        self._opening = threading.Lock()
        self._sessions: dict[int, Session] = {}
        #: Sessions on leases that aren't renewed, while something is owed on them.
        self._owing: dict[int, Session] = {}
        self._releases = Releases()
        self._alarm = Alarm()
        #: Locks that were lost alone, while their session lives, and whose holders haven't been told yet.
        self._untold: list[Lock] = []
        self._thread_runs = False
        self._stopped = False
        self._pid = os.getpid()

    # --- for the tasks' threads -----------------------------------------------------------------------------

    def enter(self, ttl_seconds: int, deadline: float) -> Session:
        """The open session with this TTL, kept open until ``leave``. Raises ``LockUnavailable`` by ``deadline``."""
        session = self._live(ttl_seconds)
        if session is not None:
            return session
        if not self._opening.acquire(timeout=max(0.0, deadline - self._clock())):
            raise LockUnavailable("the lock store gave no answer in time while a session was opened")
        try:
            return self._live(ttl_seconds) or self._open(ttl_seconds, deadline)
        finally:
            self._opening.release()

    def _live(self, ttl_seconds: int) -> Session | None:
        with self._mutex:
            session = self._sessions.get(ttl_seconds)
        return session if session is not None and session.enter() else None

    def _open(self, ttl_seconds: int, deadline: float) -> Session:
        session = open_session(ttl_seconds, deadline, self._store, self._clock, self._page)
        if session.ttl_seconds > ttl_seconds:
            logger.warning(
                "etcd's least TTL is %s s, more than the %s s asked for (etcdlock_ttl or lock_ttl): a dead worker's "
                "locks stay for %s s. Raise the setting, or lower etcd's --election-timeout.",
                session.ttl_seconds,
                ttl_seconds,
                session.ttl_seconds,
            )
        session.enter()
        self._schedule(session, session.ttl_seconds * RENEW_AFTER)
        with self._mutex:
            replaced = self._sessions.get(ttl_seconds)
            self._sessions[ttl_seconds] = session
            if replaced is not None:  # lost or closed; the thread says so and revokes its lease
                self._sessions[-replaced.lease] = replaced
        self._wake()
        return session

    def _wake(self) -> None:
        with self._mutex:
            start = not self._thread_runs
            self._thread_runs = True
        if start:
            start_thread(self._run, "celery-etcdlock-renewal")
        self._alarm.ring()

    def renew(self, session: Session) -> bool:
        """Renew now, in the caller's thread. Returns whether the session may be trusted for longer."""
        return self._renew(session, self._store)

    def owe(self, session: Session, debt: Debt) -> None:
        """Have ``debt`` paid in the background as soon as the store answers."""
        session.abandon(debt)
        self._alarm.ring()

    def owe_on_shared(self, session: Session, debt: Debt) -> None:
        """The same on a lease that isn't renewed."""
        session.abandon(debt)
        with self._mutex:
            self._owing[session.lease] = session
        self._wake()

    def owe_release(self, debt: Debt | EndedRun) -> None:
        """The same for keys on anybody's lease: one as of ``debt.mod_revision``, or those of a run that has ended."""
        self._releases.owe(debt)
        self._wake()

    def stop(self) -> None:
        """Pay what is owed, revoke the leases on which nothing hangs and end the thread.

        Locks still held are no longer renewed.
        """
        self._stopped = True
        self._alarm.ring()
        with self._mutex:
            sessions = list(self._sessions.values())
            self._sessions.clear()
        for session in sessions:
            if session.close_if_idle(0) or session.close_if_only_owing():
                self._revoke(session, self._store)
        self._pay_at_the_end()

    def _pay_at_the_end(self) -> None:
        deadline = self._clock() + LAST_SECONDS
        while self._clock() < deadline:
            owing = self._debtors()
            if not owing or not all(pay(each, self._store, self._clock, deadline) for each in owing):
                break
        left = sum(len(each.debts()) for each in self._debtors())
        if left:
            logger.warning("celery-etcdlock: %d keys of this process stay in etcd until their time is over", left)

    # --- the renewal's thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped and os.getpid() == self._pid:
            try:
                self._alarm.wait(self._round())
            except Exception:
                # Whatever it was, the locks of this process depend on the next attempt.
                logger.exception("celery-etcdlock: the renewal failed unexpectedly and goes on")
                self._alarm.wait(RETRY_SECONDS)

    def _round(self) -> float | None:
        """Do what is due. Returns the seconds until something is due again."""
        with self._mutex:
            sessions = list(self._sessions.items())
        lost = [(place, session) for place, session in sessions if session.lost_reason() is not None]
        # All holders are told before any request that may take long: by now their time is over.
        for _, session in lost:
            self._tell_all(session)
        self._tell_untold()
        for place, session in lost:
            self._forget(place, session)
            self._revoke(session, self._renewal_store)
        for place, session in sessions:
            if session.lost_reason() is not None:
                continue  # just buried, or lost in this round: the next one begins at once
            if session.closed or session.close_if_idle(max(IDLE_SECONDS, 2 * session.ttl_seconds)):
                self._forget(place, session)
                self._revoke(session, self._renewal_store)
            elif self._clock() >= session.renew_at:
                if self._renew(session, self._renewal_store):
                    self._schedule(session, session.ttl_seconds * RENEW_AFTER)
                    self._pay(place, session)
                else:
                    self._schedule(session, min(RETRY_SECONDS, session.ttl_seconds / 10))
            elif session.debts():
                self._pay(place, session)
        self._pay_others()
        return self._seconds_to_next()

    def _pay_others(self) -> None:
        for each in self._debtors():
            answer_by = min(self._clock() + RETRY_SECONDS, self._next_renewal())
            pay(each, self._renewal_store, self._clock, answer_by, self._pause)

    def _debtors(self) -> list[Debtor]:
        """Who owes something, beside the sessions that are renewed."""
        with self._mutex:
            self._owing = {lease: session for lease, session in self._owing.items() if session.debts()}
            debtors: list[Debtor] = [*self._owing.values(), self._releases]
        return [each for each in debtors if each.debts()]

    def _next_renewal(self) -> float:
        with self._mutex:
            return min((session.renew_at for session in self._sessions.values()), default=float("inf"))

    def _seconds_to_next(self) -> float | None:
        with self._mutex:
            sessions = list(self._sessions.values())
            untold = bool(self._untold)
        if untold or any(session.lost_reason() is not None for session in sessions):
            return 0.0
        due = [min(session.renew_at, session.deadline) for session in sessions]
        if self._debtors() or any(session.debts() for session in sessions):
            due.append(self._clock() + RETRY_SECONDS)
        return max(0.0, min(due) - self._clock()) if due else None

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
        with self._mutex:
            others = [other.deadline for other in self._sessions.values() if other.lost_reason() is None]
        return min([session.deadline, *others])

    def _tell_missing(self, session: Session, outcome: Renewed) -> None:
        for lock in session.held() if outcome.missing else ():
            # A lock that was let go meanwhile isn't in ``held`` any more: it is missing because we released it.
            if lock.key in outcome.missing and session.let_go(lock):
                lock.lose("its key was deleted or overwritten by somebody else")
                with self._mutex:
                    self._untold.append(lock)
                # The thread tells, since this may be the holder's own, which a loss may interrupt.
                self._alarm.ring()

    def _tell_asked(self, session: Session, outcome: Renewed) -> None:
        """Its holder is told as of a loss, but the lock stays its own until it lets go: it goes on being renewed."""
        asked = {each.token: each for each in outcome.asked}
        for lock in session.held() if asked else ():
            ask = asked.get(lock.token)
            if ask is not None and ask.revision > lock.fencing_token and not lock.lost:
                lock.lose(f"{ask.by} asked its holder to let go of it")
                with self._mutex:
                    self._untold.append(lock)
                self._alarm.ring()

    def _tell_untold(self) -> None:
        with self._mutex:
            untold, self._untold = self._untold, []
        for lock in untold:
            self._tell(lock)

    def _tell_all(self, session: Session) -> None:
        reason = session.lost_reason() or "lost"
        for lock in session.held():
            if session.let_go(lock):
                lock.lose(reason)
                self._tell(lock)

    def _tell(self, lock: Lock) -> None:
        try:
            self._on_lost(lock)
        except Exception:
            logger.exception("celery-etcdlock: a listener failed on the loss of lock %r", lock.name)

    def _forget(self, place: int, session: Session) -> None:
        with self._mutex:
            if self._sessions.get(place) is session:
                del self._sessions[place]

    def _revoke(self, session: Session, store: LockStore) -> None:
        try:
            store.perform(RevokeLease(session.lease), REVOKE_SECONDS)
        except LockUnavailable as error:
            logger.debug("lease %x is left to run out: %s", session.lease, error)
        self._strike_out(session.lease)

    def _strike_out(self, lease: int) -> None:
        if self._page is not None:
            self._page.leave(lease)

    def _pay(self, place: int, session: Session) -> None:
        answer_by = min(session.deadline, session.renew_at, self._clock() + RETRY_SECONDS)
        if pay(session, self._renewal_store, self._clock, answer_by, self._pause):
            return
        # A store that is full refuses even a guarded delete, but ends a lease. Nothing else hangs on this one;
        # if it can't be ended either, it isn't renewed any more.
        if session.close_if_only_owing():
            self._forget(place, session)
            self._revoke(session, self._renewal_store)

    def _pause(self, seconds: float) -> None:
        # time.sleep belongs to the hub under gevent; this is a real thread's.
        Alarm().wait(seconds)
