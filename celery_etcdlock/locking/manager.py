"""Acquires and releases locks for one process: the one entrance to ``locking``.

A conflict is a value, an outage raises. Whatever interrupts an acquire or a release half-way (a time limit's signal, a
shutdown), what may have been left behind is handed to the session as a debt, so that no key outlives its use.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from celery_etcdlock.core.events import (
    Listener,
    LockAcquired,
    LockConflicted,
    LockEvent,
    LockReleased,
    LockWaiting,
    LockWasLost,
)
from celery_etcdlock.core.operations import Look, Present, Queued, StoreReply
from celery_etcdlock.core.ownership import Key, Standing, standing
from celery_etcdlock.core.protocol import (
    Acquire,
    Acquired,
    Conflicted,
    Machine,
    Released,
    ReleaseKey,
    Resolve,
    Resolved,
    SessionLost,
    Unavailable,
)
from celery_etcdlock.core.record import Record
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.clock import Clock, boot_time
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.log import log_event
from celery_etcdlock.locking.renewal import SessionKeeper
from celery_etcdlock.locking.session import Debt, Session
from celery_etcdlock.locking.store import LockStore

__all__ = ["Conflict", "LockManager"]

logger = logging.getLogger("celery_etcdlock")

#: The part of the time for an acquire that is spent on trying; the rest is kept to resolve an unanswered request.
TRYING = 0.75


@dataclass(frozen=True, slots=True)
class Conflict:
    """Others hold the lock. ``keys`` are theirs, owners first."""

    name: str
    keys: tuple[Key, ...]

    @property
    def holder(self) -> Record | None:
        """The first holder; ``None`` where nobody is left, or a record that we can't read."""
        return self.keys[0].record if self.keys else None


class LockManager:
    """Locks of one process in one store. Make a new one after a fork.

    ``timeout_seconds`` bounds each acquire (not counting what a caller chose to wait for others) and each release.
    """

    def __init__(
        self,
        store: LockStore,
        renewal_store: LockStore | None = None,
        *,
        timeout_seconds: float = 5.0,
        clock: Clock = boot_time,
        listener: Listener | None = None,
    ) -> None:
        self._store = store
        self._renewal_store = renewal_store or store
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._listener = listener
        self._keeper = SessionKeeper(store, self._renewal_store, clock, on_lost=self._on_lost)
        self.pid = os.getpid()

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
        """Own the lock, or say who does.

        With ``wait_seconds`` it waits in line, in order of arrival, and is woken by a watch. ``on_held`` is given the
        lock before this returns, so that a caller that a signal may interrupt in between can't lose it. ``on_lost`` is
        called in another thread if the lock is lost. Raises ``LockUnavailable``.
        """
        started_at = self._clock()
        deadline = started_at + self._timeout_seconds
        wait_until = started_at + wait_seconds if wait_seconds > 0 else None
        while True:
            session = self._keeper.enter(ttl_seconds, deadline)
            try:
                outcome = self._acquire(session, name, record, deadline, wait_until, on_held, on_lost)
            finally:
                session.leave()
            if isinstance(outcome, Lock):
                waited_seconds = max(0.0, outcome.acquired_at - started_at)
                self.tell(LockAcquired(name, record, outcome.fencing_token, waited_seconds))
                return outcome
            if isinstance(outcome, Conflict):
                self.tell(LockConflicted(name, record, outcome.holder))
                return outcome
            now = self._clock()
            if wait_until is not None and now < wait_until:
                deadline = now + self._timeout_seconds
            elif now >= deadline:
                raise LockUnavailable(f"the session of this process was lost while it acquired: {outcome.reason}")

    def _acquire(
        self,
        session: Session,
        name: str,
        record: Record,
        deadline: float,
        wait_until: float | None,
        on_held: Callable[[Lock], None] | None,
        on_lost: Callable[[Lock], None] | None,
    ) -> Lock | Conflict | SessionLost:
        token = secrets.token_hex(12)
        now = self._clock()
        machine = Acquire(
            lease=session.lease,
            epoch=session.epoch,
            name=name,
            token=token,
            record=record,
            give_up_at=now + (deadline - now) * TRYING,
            deadline=deadline,
            wait_until=wait_until,
            answer_seconds=self._timeout_seconds,
        )
        try:

            def observe(reply: StoreReply) -> None:
                session.observe(reply)
                if isinstance(reply, Queued) and standing(reply.keys, token, record.limit) is Standing.WAITING:
                    self.tell(LockWaiting(name, record, Conflict(name, reply.keys).holder))

            outcome = drive(machine, self._store, self._clock, observe=observe)
            if isinstance(outcome, Acquired):
                lock = Lock(
                    name,
                    outcome.fencing_token,
                    token=token,
                    record=record,
                    session=session,
                    doubtful=outcome.doubtful,
                    on_lost=on_lost,
                )
                session.hold(lock)
                trusted = self._trusted(lock)
                if trusted is lock and on_held is not None:
                    on_held(lock)
                return trusted
        except BaseException:
            # Interrupted half-way, by a signal or an error: our key may be there.
            self._keeper.owe(session, Debt(name, token))
            raise
        if isinstance(outcome, Conflicted):
            return Conflict(name, outcome.keys)
        if isinstance(outcome, SessionLost):
            session.lose(outcome.reason)
            return outcome
        if outcome.doubtful:
            self._keeper.owe(session, Debt(name, token))
        raise outcome.error

    def _trusted(self, lock: Lock) -> Lock | SessionLost:
        """A body is entered with a live lock: renew it first when less than half of its time is left (rule 8)."""
        session = lock.session
        if session.remaining() < session.ttl_seconds / 2:
            self._keeper.renew(session)
        reason = session.lost_reason()
        if reason is None and not lock.lost:
            return lock
        # Ours is the key that the next try would meet, so it has to go first.
        session.let_go(lock)
        resolve = Resolve(
            lease=session.lease,
            name=lock.name,
            token=lock.token,
            deadline=self._clock() + self._timeout_seconds * (1 - TRYING),
        )
        if isinstance(drive(resolve, self._store, self._clock, observe=session.observe), Resolved):
            return SessionLost(reason or "its key was deleted at once")
        raise LockUnavailable("the session of this process was lost, and its locks aren't gone yet")

    def keys(self, name: str) -> tuple[Key, ...]:
        """All keys under the lock's name now, those of its owners first. Raises ``LockUnavailable``."""
        reply = self._store.perform(Look(name), self._timeout_seconds)
        if not isinstance(reply, Present):
            raise TypeError(f"a look was answered with {reply!r}")
        return reply.keys

    def release(self, lock: Lock) -> None:
        """Release the lock, once. Never raises for the store's sake: what can't be confirmed is repeated until it is.

        In a forked copy of the holder it does nothing: the lock is the parent's.
        """
        if os.getpid() != lock.pid:
            logger.warning("lock %r isn't released by a forked child of its holder", lock.name)
            return
        session = lock.session
        if not session.let_go(lock):
            return
        debt = Debt(lock.name, lock.token, None if lock.doubtful else lock.fencing_token)
        if session.lost_reason() is not None:
            # Its lease is being revoked, or runs out.
            self._lost_unnoticed(lock, session.lost_reason() or "its session was lost")
            return
        told_as_lost = lock.lost  # its holder was asked to let go
        deadline = self._clock() + self._timeout_seconds
        try:
            outcome = drive(self._releasing(lock, deadline), self._store, self._clock, observe=session.observe)
        except BaseException:
            self._keeper.owe(session, debt)
            raise
        if isinstance(outcome, Unavailable):
            self._keeper.owe(session, debt)
            logger.warning("the release of lock %r got no answer and is repeated until it does", lock.name)
        if isinstance(outcome, Released) and not outcome.was_held:
            self._lost_unnoticed(lock, "its key was gone when it was released")
            return
        if not told_as_lost:
            held_seconds = max(0.0, self._clock() - lock.acquired_at)
            self.tell(LockReleased(lock.name, lock.record, lock.fencing_token, held_seconds))

    def _lost_unnoticed(self, lock: Lock, reason: str) -> None:
        """Say of a lock that its holder lets go what the renewal hadn't come to say yet."""
        lock.lose(reason)
        lock.on_lost = None  # nobody is left to interrupt
        self._on_lost(lock)

    @staticmethod
    def _releasing(lock: Lock, deadline: float) -> Machine[Released | Resolved | Unavailable]:
        if lock.doubtful:
            return Resolve(lease=lock.session.lease, name=lock.name, token=lock.token, deadline=deadline)
        return ReleaseKey(name=lock.name, token=lock.token, mod_revision=lock.fencing_token, deadline=deadline)

    def close(self) -> None:
        """End the sessions on which nothing hangs, and close the connections."""
        self._keeper.stop()
        self._store.close()
        if self._renewal_store is not self._store:
            self._renewal_store.close()

    def tell(self, event: LockEvent) -> None:
        """Log ``event`` and hand it to the listener."""
        log_event(event)
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:
            logger.exception("celery-etcdlock: a listener failed on %r", event)

    def _on_lost(self, lock: Lock) -> None:
        reason = lock.lost_reason or "lost"
        self.tell(LockWasLost(lock.name, lock.record, lock.fencing_token, reason))
        if lock.on_lost is not None:
            lock.on_lost(lock)
