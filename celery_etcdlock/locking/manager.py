"""Acquires and releases locks for one process: the one entrance to ``locking``.

A conflict is a value, an outage raises. Whatever interrupts an acquire or a release half-way (a time limit's signal, a
shutdown), between whatever two steps: what may have been left behind is a pending delete of the session, so that no key
outlives its use (``session``). Both ways to end a holding may be repeated when one was interrupted.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from celery_etcdlock.core import events as lock_events
from celery_etcdlock.core import protocol as machines
from celery_etcdlock.core.operations import AskToRelease, Look, MarkDone, TryAcquire
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import Present
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.acquire_request import AcquireRequest
from celery_etcdlock.locking.acquisition import Acquirer, Attempted
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
from celery_etcdlock.locking.session import PendingDelete, Session
from celery_etcdlock.locking.store_access import BlockingStoreAccess, StoreAccess, run_at_once

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
        self._store = store
        self._renewal_store = renewal_store or store
        self.timeout_seconds = timeout_seconds
        self._clock = clock
        self._listener = listener
        self._tokens = KeyTokenPool()
        marks = DoneMarks(self._renewal_store, clock, timeout_seconds, done_seconds)
        self._keeper = SessionKeeper(store, self._renewal_store, clock, marks, on_lost=self._on_lost, page=page)
        self._blocking = BlockingStoreAccess(store)
        self._acquirer = Acquirer(self._keeper, clock, timeout_seconds, self.tell)
        #: Locks that stand without renewal.
        self.claims = Claims(
            store, clock, timeout_seconds, wall_clock, schedule_delete=self._keeper.schedule_delete_on_shared
        )
        #: Which deliveries have come to their end.
        self.done = DoneMarks(
            store,
            clock,
            timeout_seconds,
            done_seconds,
            schedule_mark=self._keeper.schedule_mark,
            pending=self._keeper.pending_marks,
        )
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
        """Own the lock, or say who does (``AcquireRequest``). Raises ``LockUnavailable``."""
        request = AcquireRequest((name,), record, ttl_seconds, wait_seconds, on_held, on_lost)
        outcome = run_at_once(self.acquiring(self._blocking, request))
        return outcome if isinstance(outcome, Conflict) else outcome[0]

    def acquire_all(
        self,
        names: Sequence[str],
        record: Record,
        *,
        ttl_seconds: int,
        on_held: Callable[[Lock], None] | None = None,
        on_lost: Callable[[Lock], None] | None = None,
    ) -> list[Lock] | Conflict:
        """Own all of these locks, or none and say who holds one of them. All have one fencing token.

        Otherwise as ``acquire``, without waiting.
        """
        request = AcquireRequest(tuple(names), record, ttl_seconds, on_held=on_held, on_lost=on_lost)
        return run_at_once(self.acquiring(self._blocking, request))

    async def acquiring(self, asking: StoreAccess, request: AcquireRequest) -> list[Lock] | Conflict:
        """Own all locks of ``request``, or none and say who holds one of them, wherever ``asking`` waits."""
        started_at = self._clock()
        wait_until = started_at + request.wait_seconds if request.wait_seconds > 0 else None
        names = request.names
        is_one = len(names) == 1

        async def attempt(session: Session, give_up_at: float, deadline: float) -> Attempted:
            pending_deletes = [PendingDelete(name, self._tokens.take(name)) for name in names]
            machine: machines.Acquire | machines.AcquireAll
            if is_one:
                machine = machines.Acquire(
                    lease=session.lease,
                    epoch=session.epoch,
                    name=names[0],
                    token=pending_deletes[0].token,
                    record=request.record,
                    give_up_at=give_up_at,
                    deadline=deadline,
                    wait_until=wait_until,
                    answer_seconds=self.timeout_seconds,
                    wall_offset=self.claims.wall_offset,
                )
            else:
                machine = machines.AcquireAll(
                    tuple(
                        TryAcquire(session.lease, session.epoch, pending.name, pending.token, request.record)
                        for pending in pending_deletes
                    ),
                    epoch=session.epoch,
                    give_up_at=give_up_at,
                    deadline=deadline,
                    wall_offset=self.claims.wall_offset,
                )
            owned = await self._acquirer.own(asking, session, machine, pending_deletes, request, wait_until)
            if isinstance(owned, list):
                for lock in owned:
                    lock.token_is_ours = True
            elif is_one and isinstance(owned, Conflict):
                self._tokens.give_back(owned.name, pending_deletes[0].token)
            return owned

        outcome = await self._acquirer.on_session(asking, request.ttl_seconds, wait_until, attempt)
        if isinstance(outcome, Conflict):
            self.tell(lock_events.LockConflicted(outcome.name, request.record, outcome.holder))
        else:
            self._tell_acquired(outcome, started_at)
        return outcome

    def take_over(
        self,
        claim: Claim,
        record: Record,
        *,
        ttl_seconds: int,
        on_held: Callable[[Lock], None] | None = None,
        on_lost: Callable[[Lock], None] | None = None,
    ) -> Lock | Conflict:
        """Own the lock that was taken for a message before it started, or say who has it now.

        Otherwise as ``acquire``.
        """

        async def attempt(session: Session, give_up_at: float, deadline: float) -> Attempted:
            ours = replace(record, attempt=secrets.token_hex(6))
            request = AcquireRequest((claim.name,), ours, ttl_seconds, on_held=on_held, on_lost=on_lost)
            machine = machines.TakeOver(
                lease=session.lease,
                epoch=session.epoch,
                name=claim.name,
                token=claim.token,
                record=ours,
                mod_revision=claim.revision,
                give_up_at=give_up_at,
                deadline=deadline,
            )
            pending = PendingDelete(claim.name, claim.token, attempt=ours.attempt)
            return await self._acquirer.own(self._blocking, session, machine, [pending], request)

        started_at = self._clock()
        outcome = run_at_once(self._acquirer.on_session(self._blocking, ttl_seconds, None, attempt))
        if isinstance(outcome, Conflict):
            return outcome
        self._tell_acquired(outcome, started_at)
        return outcome[0]

    @property
    def store(self) -> LockStore:
        """For requests that aren't the renewal's."""
        return self._store

    def ask_to_release(self, name: str, key: Key, by: str) -> None:
        """Ask whoever has ``key`` to release the lock: it hears of that with its next renewal.

        Raises ``LockUnavailable``.
        """
        self._store.perform(AskToRelease(name, key.token, key.mod_revision, by), self.timeout_seconds)

    def keys(self, name: str) -> tuple[Key, ...]:
        """All keys under the lock's name now, those of its owners first. Raises ``LockUnavailable``."""
        reply = self._store.perform(Look(name), self.timeout_seconds)
        if not isinstance(reply, Present):
            raise TypeError(f"a look was answered with {reply!r}")
        return reply.keys

    def book(self, name: str, lock: Lock) -> SavedStates:
        """The states that the holder of ``lock`` keeps under ``name`` for the next one."""
        return SavedStates(self._store, self._clock, self.timeout_seconds, name, lock.key)

    def keep(self, lock: Lock, record: Record, seconds: float) -> Claim | None:
        """Instead of releasing the lock: let it stand for ``seconds`` without renewal, with this record.

        When that can't be done it is released, and ``None`` returned. Never raises for the store's sake.
        """
        if os.getpid() != lock.pid or lock.doubtful or lock.lost:
            self.release(lock)
            return None
        claim = Claim(lock.name, lock.token, lock.fencing_token)
        session = lock.session
        pending = lock.pending_delete
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
                self._keeper.schedule_delete(session, pending)
                logger.warning("lock %r couldn't be left to stand; it is released: %s", lock.name, error)
                return None
            session.settle(pending)
        except BaseException:
            self._keeper.hurry(session, lock, pending)
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
        session = lock.session
        known_as_lost = lock.lost  # its holder was asked to release it
        lock.end()
        pending = lock.pending_delete
        try:
            interrupted = session.has_pending_deletes(pending)
            deadline = self._clock() + self.timeout_seconds
            if done is not None:
                self.done.pending.add(done)
            mark = None if done is None else self.done.mark(done, deadline)
            if not session.begin_release(lock, pending, deadline + self.timeout_seconds):
                return False
            # Of a session that was lost the lease is being revoked, or runs out.
            session_lost = session.lost_reason()
            outcome: machines.Released | machines.Resolved | machines.Unavailable | None = None
            if done is not None and mark is None and session_lost is None:
                outcome = machines.Unavailable(LockUnavailable("there is no lease for the mark that the task has run"))
            elif session_lost is None:
                releasing = self._releasing(lock, deadline, mark)
                outcome = run_at_once(steer(releasing, self._blocking, self._clock, observe=session.observe))
            if isinstance(outcome, machines.Unavailable):
                if done is not None:
                    self._keeper.schedule_mark(done)
                self._keeper.schedule_delete(session, pending)
            else:
                session.settle(pending)
            if done is not None and isinstance(outcome, machines.Released) and outcome.marked:
                self.done.pending.discard(done)
        except BaseException:
            if done is not None:
                self._keeper.schedule_mark(done)
            self._keeper.hurry(session, lock, pending)
            raise
        if session_lost is not None:
            self._lost_unnoticed(lock, session_lost)
            return False
        if isinstance(outcome, machines.Unavailable):
            logger.warning("the release of lock %r got no answer and is repeated until it does", lock.name)
        if isinstance(outcome, machines.Released) and not outcome.was_held and not interrupted:
            self._lost_unnoticed(lock, "its key was gone when it was released")
            return False
        lock.was_ours = True
        # After an interrupted try the key may be there all the same, as one that was left to stand (``keep``).
        if isinstance(outcome, machines.Released) and lock.token_is_ours and not interrupted:
            self._tokens.give_back(lock.name, lock.token)
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
            self._keeper.hurry(lock.session, lock, lock.pending_delete)

    def drop_ended(self, name: str, delivery: Delivery) -> None:
        """Delete what stands under ``name`` for a run of a message that has ended: now, or when the store answers
        again.

        As long as an earlier run of the message holds the lock, what that leaves for this one is deleted, too. Never
        raises for the store's sake.
        """
        self._drop_ended(EndedRun(name, delivery))

    def drop_position(self, name: str, delivery: Delivery) -> None:
        """Delete the queue position under ``name`` of a run that goes on without it. Never raises as above."""
        self._drop_ended(EndedRun(name, delivery, position_only=True))

    def _drop_ended(self, ended: EndedRun) -> None:
        try:
            outcome = self.claims.drop_ended(ended.name, ended.delivery, position_only=ended.position_only)
        except BaseException as error:
            self._keeper.schedule_release(ended)
            if not isinstance(error, LockUnavailable):
                raise
            logger.warning("lock %r of a message is given up as soon as the store answers: %s", ended.name, error)
        else:
            if outcome.look_again:
                self._keeper.schedule_release(ended)

    def drop_in_the_end(self, claim: Claim) -> None:
        """Delete a key that this process put: now, or when the store answers again.

        Never raises for the store's sake.
        """
        try:
            self.claims.drop(claim)
        except BaseException as error:
            self._keeper.schedule_release(
                PendingDelete(claim.name, claim.token, claim.revision, replaces=claim.replaces)
            )
            if not isinstance(error, LockUnavailable):
                raise
            logger.warning("the release of lock %r got no answer and is repeated until it does", claim.name)

    def _tell_acquired(self, locks: Sequence[Lock], started_at: float) -> None:
        for lock in locks:
            waited_seconds = max(0.0, lock.acquired_at - started_at)
            self.tell(lock_events.LockAcquired(lock.name, lock.record, lock.fencing_token, waited_seconds))

    def _tell_released(self, lock: Lock) -> None:
        self.tell(
            lock_events.LockReleased(
                lock.name, lock.record, lock.fencing_token, max(0.0, self._clock() - lock.acquired_at)
            )
        )

    def _lost_unnoticed(self, lock: Lock, reason: str) -> None:
        """Say of a lock that its holder releases what the renewal hadn't come to say yet."""
        lock.lose(reason)
        lock.on_lost = None  # nobody is left to interrupt
        self._on_lost(lock)

    @staticmethod
    def _releasing(
        lock: Lock, deadline: float, done: MarkDone | None
    ) -> machines.Machine[machines.Released | machines.Resolved | machines.Unavailable]:
        if lock.doubtful:
            return machines.Resolve(lease=lock.session.lease, name=lock.name, token=lock.token, deadline=deadline)
        return machines.ReleaseKey(
            name=lock.name, token=lock.token, mod_revision=lock.fencing_token, deadline=deadline, done=done
        )

    def give_up(self) -> None:
        """Give up all locks and places in line at once, for good: a process ends that has others wait for it.

        A wait that goes on in another thread ends with ``LockUnavailable``.
        """
        self._keeper.give_up()
        self.close()

    def close(self) -> None:
        """End the sessions on which nothing hangs, and close the connections."""
        self._keeper.stop()
        self._store.close()
        if self._renewal_store is not self._store:
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
