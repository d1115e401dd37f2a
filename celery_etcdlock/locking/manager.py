"""Acquires and releases locks for one process: the one entrance to ``locking``.

A conflict is a value, an outage raises. Whatever interrupts an acquire or a release half-way (a time limit's signal, a
shutdown), between whatever two steps: what may have been left behind is a pending delete of the session, so that no key
outlives its use (``session``). Both ways to end a holding may be repeated when one was interrupted.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from celery_etcdlock.core import events as lock_events
from celery_etcdlock.core import protocol as machines
from celery_etcdlock.core.operations import AskToRelease, Look, MarkDone
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import Present
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.acquisition import Acquirer, AcquireRequest
from celery_etcdlock.locking.claims import Claims
from celery_etcdlock.locking.clock import Clock, boot_time
from celery_etcdlock.locking.done_marks import DONE_SECONDS, DoneMarks
from celery_etcdlock.locking.driver import steer
from celery_etcdlock.locking.event_log import log_event
from celery_etcdlock.locking.key_tokens import KeyTokenPool
from celery_etcdlock.locking.lease_page import LeasePage
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.outcomes import Claim, Conflict
from celery_etcdlock.locking.pending_deletes import EndedRun
from celery_etcdlock.locking.renewal import SessionKeeper
from celery_etcdlock.locking.saved_states import SavedStates
from celery_etcdlock.locking.session import PendingDelete
from celery_etcdlock.locking.store_access import BlockingStoreAccess, run_at_once

logger = logging.getLogger("celery_etcdlock")


class LockManager:
    """Locks of one process in one store. Make a new one after a fork.

    ``timeout_seconds`` bounds each acquire (not counting what a caller chose to wait for others) and each release.
    ``page`` is shared with the parent process, which looks after the leases written on it (``child_lease_guardian``).
    What ``listener`` raises ends the call, with no lock left behind: let it be only what interrupts the caller from
    outside (``listeners.Listeners``). ``wall_clock`` tells the Unix time.
    """

    def __init__(
        self,
        store: LockStore,
        renewal_store: LockStore | None = None,
        *,
        timeout_seconds: float = 5.0,
        clock: Clock = boot_time,
        listener: lock_events.Listener | None = None,
        done_seconds: float = DONE_SECONDS,
        page: LeasePage | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._renewal_store = renewal_store or store
        self.timeout_seconds = timeout_seconds
        self.pid = os.getpid()
        self._clock = clock
        self._listener = listener
        self._tokens = KeyTokenPool()
        self._blocking = BlockingStoreAccess(store)
        marks = DoneMarks(self._renewal_store, clock, timeout_seconds, done_seconds)
        self._keeper = SessionKeeper(store, self._renewal_store, clock, marks, on_lost=self._on_lost, page=page)
        #: Locks that stand without renewal.
        self.claims = Claims(store, clock, timeout_seconds, wall_clock, self._keeper.adopt)
        #: Which deliveries have come to their end.
        schedule_mark = self._keeper.schedule_mark
        self.done = DoneMarks(store, clock, timeout_seconds, done_seconds, schedule_mark, marks.pending)
        self.acquirer = Acquirer(self._keeper, self.claims, self._tokens, clock, timeout_seconds, self.tell)

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
        """Own the lock, or say who does (``AcquireRequest``). Raises ``LockUnavailable``."""
        outcome = self.acquire_all(AcquireRequest((name,), record, ttl_seconds, wait_seconds, on_held, on_lost))
        return outcome if isinstance(outcome, Conflict) else outcome[0]

    def acquire_all(self, request: AcquireRequest) -> list[Lock] | Conflict:
        """The same for all locks of ``request``, which then have one fencing token, or none of them."""
        return run_at_once(self.acquirer.acquire(self._blocking, request))

    def ask_to_release(self, name: str, key: Key, by: str) -> None:
        """Ask whoever has ``key`` to release: it learns of that with its next renewal. Raises ``LockUnavailable``."""
        self.store.perform(AskToRelease(name, key.token, key.mod_revision, by), self.timeout_seconds)

    def keys(self, name: str) -> tuple[Key, ...]:
        """All keys under the lock's name now, those of its owners first. Raises ``LockUnavailable``."""
        reply = self.store.perform(Look(name), self.timeout_seconds)
        if not isinstance(reply, Present):
            raise TypeError(f"a look was answered with {reply!r}")
        return reply.keys

    def saved_states(self, name: str, lock: Lock) -> SavedStates:
        """The states that the holder of ``lock`` keeps under ``name`` for the next one."""
        return SavedStates(self.store, self._clock, self.timeout_seconds, name, lock.key)

    def keep(self, lock: Lock, record: Record, seconds: float) -> Claim | None:
        """Instead of releasing the lock: let it stand for ``seconds`` without renewal, with this record.

        When that can't be done it is released, and ``None`` returned. Never raises for the store's sake.
        """
        if os.getpid() != lock.pid or lock.doubtful or lock.lost:
            self.release(lock)
            return None
        claim = Claim(lock.name, lock.token, lock.fencing_token)
        session, pending = lock.session, lock.pending_delete
        lock.end()
        try:
            if session.has_pending_deletes(pending):  # an earlier try was interrupted
                self.release(lock)
                return None
            # Not held any more first, for the renewal must not take the new record for somebody else's.
            if not session.begin_release(lock, pending, self._clock() + 3 * self.timeout_seconds):
                return None
            try:
                outcome = self.claims.keep(claim, record, seconds)
            except LockUnavailable as error:
                session.abandon(pending)
                logger.warning("lock %r couldn't be left to stand; it is released: %s", lock.name, error)
                return None
            session.settle(pending)
        except BaseException:
            session.hurry(lock, pending)
            raise
        if isinstance(outcome, Conflict):
            self._lost_unnoticed(lock, "its key was gone when it was to be left for later")
            return None
        self._tell_released(lock)
        return outcome

    def release(self, lock: Lock, done: Delivery | None = None) -> bool:
        """Release the lock. Never raises for the store's sake: what can't be confirmed is repeated until it is.

        With ``done``, mark in the same moment that this run has come to its end, or have it marked before the release;
        false if that is left to do.
        A lock that is released already is let alone; one whose release was interrupted is released once more.
        In a forked copy of the holder it does nothing: the lock is the parent's. From now on the lock vouches for
        nothing; ``lock.was_ours`` says whether it did until now.
        """
        if os.getpid() != lock.pid:
            logger.warning("lock %r isn't released by a forked child of its holder", lock.name)
            return False
        session, pending = lock.session, lock.pending_delete
        known_as_lost = lock.lost_reason is not None  # its holder was asked to release it
        lock.end()
        try:
            interrupted = session.has_pending_deletes(pending)
            deadline = self._clock() + self.timeout_seconds
            mark = None
            if done is not None:
                self.done.pending.add(done)
                mark = self.done.mark(done, deadline)
            if not session.begin_release(lock, pending, deadline + self.timeout_seconds):
                return False
            # Of a session that was lost the lease is being revoked, or runs out.
            session_lost = session.lost_reason()
            outcome: machines.Released | machines.Resolved | machines.Unavailable | None = None
            if session_lost is None and done is not None and mark is None:
                outcome = machines.Unavailable(LockUnavailable("there is no lease for the mark that the task has run"))
            elif session_lost is None:
                machine = _releasing(lock, deadline, mark)
                outcome = run_at_once(steer(machine, self._blocking, self._clock, observe=session.observe))
            if isinstance(outcome, machines.Unavailable):
                if done is not None:
                    self._keeper.schedule_mark(done)
                session.abandon(pending)
            else:
                session.settle(pending)
            if done is not None and isinstance(outcome, machines.Released) and outcome.marked:
                self.done.pending.discard(done)
        except BaseException:
            if done is not None:
                self._keeper.schedule_mark(done)
            session.hurry(lock, pending)
            raise
        if session_lost is not None:
            self._lost_unnoticed(lock, session_lost)
            return False
        if isinstance(outcome, machines.Unavailable):
            logger.warning("the release of lock %r got no answer and is repeated until it does", lock.name)
        # After an interrupted try the key may be there all the same, as one that was left to stand (``keep``).
        elif isinstance(outcome, machines.Released) and not interrupted:
            if not outcome.was_held:
                self._lost_unnoticed(lock, "its key was gone when it was released")
                return False
            if lock.token_is_ours:
                self._tokens.give_back(lock.name, lock.token)
        lock.was_ours = True
        if not known_as_lost:
            self._tell_released(lock)
        return isinstance(outcome, machines.Unavailable) or (isinstance(outcome, machines.Released) and outcome.marked)

    def drop(self, lock: Lock, why: str) -> None:
        """Release a lock that its holder forgot, from wherever that is found: takes no mutex, and asks nobody.

        The renewal's thread says ``why`` in the log, and releases it.
        """
        if os.getpid() == lock.pid:
            lock.end()
            self._keeper.drop(lock, why)

    def abandon(self, lock: Lock) -> None:
        """Have a lock released in the background: for a caller that was interrupted, or must not wait."""
        lock.end()
        if os.getpid() == lock.pid:
            lock.session.hurry(lock, lock.pending_delete)

    def drop_ended(self, name: str, delivery: Delivery, *, position_only: bool = False) -> None:
        """As ``Claims.drop_ended``, now or when the store answers again. Never raises for the store's sake.

        As long as an earlier run of the message holds the lock, what that leaves for this one is deleted, too.
        """
        ended = EndedRun(name, delivery, position_only)
        try:
            if self.claims.drop_ended(name, delivery, position_only=position_only).look_again:
                self._keeper.schedule_release(ended)
        except BaseException as error:
            self._keeper.schedule_release(ended)
            if not isinstance(error, LockUnavailable):
                raise
            logger.warning("lock %r of a message is given up as soon as the store answers: %s", name, error)

    def drop_in_the_end(self, claim: Claim) -> None:
        """As ``Claims.drop``, now or when the store answers again. Never raises for the store's sake."""
        try:
            self.claims.drop(claim)
        except BaseException as error:
            pending = PendingDelete(claim.name, claim.token, claim.revision, replaces=claim.replaces)
            self._keeper.schedule_release(pending)
            if not isinstance(error, LockUnavailable):
                raise
            logger.warning("the release of lock %r got no answer and is repeated until it does", claim.name)

    def _tell_released(self, lock: Lock) -> None:
        held_seconds = max(0.0, self._clock() - lock.acquired_at)
        self.tell(lock_events.LockReleased(lock.name, lock.record, lock.fencing_token, held_seconds))

    def _lost_unnoticed(self, lock: Lock, reason: str) -> None:
        """Say of a lock that its holder releases what the renewal hadn't come to say yet."""
        lock.lose(reason)
        lock.on_lost = None  # nobody is left to interrupt
        self._on_lost(lock)

    def give_up(self) -> None:
        """Give up all locks and queue positions at once, for good: a process ends that has others wait for it.

        A wait that goes on in another thread ends with ``LockUnavailable``.
        """
        self._keeper.give_up()
        self.close()

    def close(self) -> None:
        """End the sessions on which nothing hangs, and close the connections."""
        self._keeper.stop()
        self.store.close()
        if self._renewal_store is not self.store:
            self._renewal_store.close()

    def tell(self, event: lock_events.LockEvent) -> None:
        """Log ``event`` and hand it to the listener."""
        log_event(event)
        if self._listener is not None:
            self._listener(event)

    def _on_lost(self, lock: Lock) -> None:
        reason = lock.lost_reason or "lost"
        try:
            self.tell(lock_events.LockWasLost(lock.name, lock.record, lock.fencing_token, reason))
        finally:
            if lock.on_lost is not None:
                lock.on_lost(lock)


def _releasing(
    lock: Lock, deadline: float, done: MarkDone | None
) -> machines.Machine[machines.Released | machines.Resolved | machines.Unavailable]:
    if lock.doubtful:
        return machines.Resolve(lease=lock.session.lease, name=lock.name, token=lock.token, deadline=deadline)
    return machines.ReleaseKey(
        name=lock.name, token=lock.token, mod_revision=lock.fencing_token, deadline=deadline, done=done
    )
