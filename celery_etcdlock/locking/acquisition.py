"""Acquires: from a request to locks that are held, and what may go wrong on the way.

A session that turns out to be lost is no answer: another is opened, and the acquire begins anew. Keys that were put
and can't be trusted are deleted before that, since the next try would take them for somebody else's.

The delete of a key is pending from before the first request that may put it (``Session.intend``), until an answer says
that it isn't there, or until it is held and its holder has it. So what a machine leaves in doubt, or a signal
interrupts between any two steps, is deleted. A holder that comes so late that the delete is due already may find it
under way, and doesn't get the lock.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from celery_etcdlock.core import protocol as machines
from celery_etcdlock.core.events import LockAcquired, LockConflicted, LockEvent, LockWaiting
from celery_etcdlock.core.operations import TryAcquire
from celery_etcdlock.core.ownership import owns
from celery_etcdlock.core.record import Record
from celery_etcdlock.core.replies import Queued, StoreReply
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.cancel_wait import WaitCancellation
from celery_etcdlock.locking.claims import Claims
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.driver import TRYING, steer
from celery_etcdlock.locking.key_tokens import KeyTokenPool
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.outcomes import Claim, Conflict
from celery_etcdlock.locking.renewal import SessionKeeper
from celery_etcdlock.locking.session import PendingDelete, Session, Use
from celery_etcdlock.locking.store_access import StoreAccess


class AcquireRequest(NamedTuple):
    """Own one lock, or all of several or none of them. With ``claim``, take over the lock of a message.

    With ``wait_seconds`` a caller who wants one lock waits in the order of arrival, until ``stop`` ends the wait as if
    its time were over; one who wants several doesn't wait. ``on_held`` is given each lock before the acquire returns,
    so that a caller whom a signal interrupts in between can't lose it. ``on_lost`` is called in another thread with
    each lock that is lost.
    """

    names: tuple[str, ...]
    #: What is stored: who holds the locks.
    record: Record
    ttl_seconds: int
    wait_seconds: float = 0.0
    on_held: Callable[[Lock], None] | None = None
    on_lost: Callable[[Lock], None] | None = None
    stop: WaitCancellation | None = None
    claim: Claim | None = None


@dataclass(eq=False)
class Acquirer:
    """See the module. ``tell`` is given the events."""

    _keeper: SessionKeeper
    _claims: Claims
    _tokens: KeyTokenPool
    _clock: Clock
    _timeout_seconds: float
    _tell: Callable[[LockEvent], None]

    async def acquire(self, asking: StoreAccess, request: AcquireRequest) -> list[Lock] | Conflict:
        """Own all locks of ``request``, or none and say who holds one of them, wherever ``asking`` waits.

        Raises ``LockUnavailable``, and ``ValueError`` where ``request`` names none.
        """
        if not request.names:
            raise ValueError("an acquire needs the name of at least one lock")
        started_at = self._clock()
        wait_until = started_at + request.wait_seconds if request.wait_seconds > 0 else None
        deadline = started_at + self._timeout_seconds
        while True:
            use = Use()
            try:
                try:
                    session = self._keeper.enter_at_once(request.ttl_seconds, use)
                    if session is None:
                        enter = self._keeper.enter
                        session = await asking.call(enter, request.ttl_seconds, deadline, use, undo=use.leave)
                    outcome = await self._try_on(session, asking, request, deadline, wait_until)
                finally:
                    use.leave()
            finally:
                # Once more: a signal may have struck in the first.
                use.leave()
            if not isinstance(outcome, machines.SessionLost):
                break
            now = self._clock()
            if wait_until is not None and now < wait_until:
                deadline = now + self._timeout_seconds
            elif now >= deadline:
                raise LockUnavailable(f"the session of this process was lost while it acquired: {outcome.reason}")
        if not isinstance(outcome, Conflict):
            for lock in outcome:
                waited_seconds = max(0.0, lock.acquired_at - started_at)
                self._tell(LockAcquired(lock.name, lock.record, lock.fencing_token, waited_seconds))
        elif request.claim is None:
            self._tell(LockConflicted(outcome.name, request.record, outcome.holder))
        return outcome

    async def _try_on(
        self,
        session: Session,
        asking: StoreAccess,
        request: AcquireRequest,
        deadline: float,
        wait_until: float | None,
    ) -> list[Lock] | Conflict | machines.SessionLost:
        claim = request.claim
        if claim is None:
            pending_deletes = [PendingDelete(name, self._tokens.take(name)) for name in request.names]
        else:
            pending_deletes = [PendingDelete(claim.name, claim.token, attempt=secrets.token_hex(6))]
            request = request._replace(record=replace(request.record, attempt=pending_deletes[0].attempt))
        record, observe = request.record, session.observe
        if wait_until is not None:
            observe = partial(self._observe, session, pending_deletes[0], record)
        locks: list[Lock] = []
        conflicts: list[Conflict] = []
        now = self._clock()
        give_up_at = now + (deadline - now) * TRYING
        # By then the acquire has come to its end, or to its deadline, or has to find out that it is late.
        due = max(now, wait_until or 0.0) + 3 * self._timeout_seconds + session.ttl_seconds
        try:
            for pending in pending_deletes:
                session.intend(pending, due)
            machine = self._machine(session, request, pending_deletes, give_up_at, deadline, wait_until)
            outcome = await steer(machine, asking, self._clock, observe=observe, stop=request.stop)
            if isinstance(outcome, machines.SessionLost):
                session.lose(outcome.reason)
            elif not isinstance(outcome, machines.Unavailable):
                outcomes = outcome.outcomes if isinstance(outcome, machines.EachAcquired) else (outcome,)
                for pending, each in zip(pending_deletes, outcomes, strict=True):
                    if isinstance(each, machines.Acquired):
                        locks.append(Lock(pending, each, record, session, token_is_ours=claim is None))
                    else:
                        has_run = None if isinstance(each, machines.Refused) else each.has_run
                        conflicts.append(Conflict(pending.name, each.keys, has_run))
                if not conflicts:
                    lost = await self._hold(asking, locks, pending_deletes, request)
                    return locks if lost is None else lost
            for pending in pending_deletes:
                if isinstance(outcome, machines.Unavailable) and outcome.doubtful:
                    session.abandon(pending)
                else:
                    session.settle(pending)
        except BaseException:
            # Interrupted half-way, by a signal or an error: our keys may be there.
            for pending in pending_deletes:
                session.abandon(pending, next((lock for lock in locks if lock.token == pending.token), None))
            raise
        if isinstance(outcome, machines.SessionLost):
            return outcome
        if isinstance(outcome, machines.Unavailable):
            raise outcome.error
        if claim is None and len(pending_deletes) == 1:
            self._tokens.give_back(pending_deletes[0].name, pending_deletes[0].token)
        return max(conflicts, key=lambda conflict: len(conflict.keys))

    def _observe(self, session: Session, pending: PendingDelete, record: Record, reply: StoreReply) -> None:
        session.observe(reply)
        if isinstance(reply, Queued) and not owns(reply.keys, pending.token, record.limit):
            self._tell(LockWaiting(pending.name, record, Conflict(pending.name, reply.keys).holder))

    def _machine(
        self,
        session: Session,
        request: AcquireRequest,
        pending_deletes: Sequence[PendingDelete],
        give_up_at: float,
        deadline: float,
        wait_until: float | None,
    ) -> machines.Machine[machines.AcquireOutcome | machines.EachAcquired | machines.Refused | machines.Unavailable]:
        """What asks for one lock for each of ``pending_deletes``."""
        first, record = pending_deletes[0], request.record
        if request.claim is not None:
            return machines.TakeOver(
                lease=session.lease,
                epoch=session.epoch,
                name=first.name,
                token=first.token,
                record=record,
                mod_revision=request.claim.revision,
                give_up_at=give_up_at,
                deadline=deadline,
            )
        if len(pending_deletes) == 1:
            return machines.Acquire(
                lease=session.lease,
                epoch=session.epoch,
                name=first.name,
                token=first.token,
                record=record,
                give_up_at=give_up_at,
                deadline=deadline,
                wait_until=wait_until,
                answer_seconds=self._timeout_seconds,
                wall_offset=self._claims.wall_offset,
            )
        return machines.AcquireAll(
            tuple(TryAcquire(session.lease, session.epoch, each.name, each.token, record) for each in pending_deletes),
            epoch=session.epoch,
            give_up_at=give_up_at,
            deadline=deadline,
            wall_offset=self._claims.wall_offset,
        )

    async def _hold(
        self,
        asking: StoreAccess,
        locks: Sequence[Lock],
        pending_deletes: Sequence[PendingDelete],
        request: AcquireRequest,
    ) -> machines.SessionLost | None:
        session = locks[0].session
        for lock in locks:
            session.hold(lock)
        lost = await self._lost_at_once(asking, session, locks)
        if lost is None:
            for lock in locks:
                # Only a lock that its holder gets: the loss of one that is taken anew must interrupt nobody.
                lock.on_lost = request.on_lost
                if request.on_held is not None:
                    request.on_held(lock)
                if request.on_lost is not None and lock.lost:
                    request.on_lost(lock)  # lost before the renewal's thread could know whom to tell
        in_time = [session.settle(pending) for pending in pending_deletes]
        if lost is None and not all(in_time):
            raise LockUnavailable("the acquire took too long: what it left may be deleted already", maybe_applied=True)
        return lost

    async def _lost_at_once(
        self, asking: StoreAccess, session: Session, locks: Sequence[Lock]
    ) -> machines.SessionLost | None:
        """A body is entered with live locks: renew them first when less than half of their time is left (rule 8).

        If one of them is lost all the same, none is kept: ours are the keys that the next try would meet.
        """
        if session.remaining() < session.ttl_seconds / 2:
            await asking.call(self._keeper.renew, session)
        if not [lock for lock in locks if lock.lost_reason is not None]:  # alone, or with their session
            return None
        deadline = self._clock() + self._timeout_seconds * (1 - TRYING)
        for lock in locks:
            session.end_hold(lock)
            resolve = machines.Resolve(lease=session.lease, name=lock.name, token=lock.token, deadline=deadline)
            if not isinstance(await steer(resolve, asking, self._clock, observe=session.observe), machines.Resolved):
                raise LockUnavailable("the session of this process was lost, and its locks aren't gone yet")
        return machines.SessionLost(session.lost_reason() or "a key of its was deleted at once")
