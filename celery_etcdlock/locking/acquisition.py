"""From a machine of the protocol to locks that are held: what every acquire has in common, and what may go wrong.

A session that turns out to be lost is no answer: another is opened, and the acquire begins anew. Keys that were put
and can't be trusted are deleted before that, since the next try would take them for somebody else's.

The delete of a key is pending from before the first request that may put it (``Session.intend``), until an answer says
that it isn't there, or until it is held and its holder has it. So what a machine leaves in doubt, or a signal
interrupts between any two steps, is deleted. A holder that comes so late that the delete is due already may find it
under way, and doesn't get the lock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from celery_etcdlock.core import protocol as machines
from celery_etcdlock.core.events import LockEvent, LockWaiting
from celery_etcdlock.core.ownership import owns
from celery_etcdlock.core.replies import Queued, StoreReply
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.acquire_request import AcquireRequest
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.driver import TRYING, steer
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.outcomes import Conflict
from celery_etcdlock.locking.renewal import SessionKeeper
from celery_etcdlock.locking.session import PendingDelete, Session, Use
from celery_etcdlock.locking.store_access import StoreAccess

#: What one try on one session comes to.
Attempted = list[Lock] | Conflict | machines.SessionLost


class Acquirer:
    """Drives machines that end in ownership. ``tell`` is told of a lock that is waited for."""

    def __init__(
        self,
        keeper: SessionKeeper,
        clock: Clock,
        timeout_seconds: float,
        tell: Callable[[LockEvent], None],
    ) -> None:
        self._keeper = keeper
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._tell = tell

    async def on_session(
        self,
        asking: StoreAccess,
        ttl_seconds: int,
        wait_until: float | None,
        attempt: Callable[[Session, float, float], Awaitable[Attempted]],
    ) -> list[Lock] | Conflict:
        """``attempt``, given a session, when to give up and its deadline, until it isn't the session that failed it."""
        deadline = self._clock() + self._timeout_seconds
        while True:
            use = Use()
            try:
                try:
                    session = self._keeper.enter_at_once(ttl_seconds, use)
                    if session is None:
                        session = await self._enter(asking, ttl_seconds, deadline, use)
                    now = self._clock()
                    outcome = await attempt(session, now + (deadline - now) * TRYING, deadline)
                finally:
                    use.leave()
            finally:
                # Once more: a signal may have struck in the first.
                use.leave()
            if not isinstance(outcome, machines.SessionLost):
                return outcome
            now = self._clock()
            if wait_until is not None and now < wait_until:
                deadline = now + self._timeout_seconds
            elif now >= deadline:
                raise LockUnavailable(f"the session of this process was lost while it acquired: {outcome.reason}")

    async def _enter(self, asking: StoreAccess, ttl_seconds: int, deadline: float, use: Use) -> Session:
        return await asking.call(self._keeper.enter, ttl_seconds, deadline, use, undo=lambda _: use.leave())

    async def own(
        self,
        asking: StoreAccess,
        session: Session,
        machine: machines.Machine[
            machines.AcquireOutcome | machines.EachAcquired | machines.Refused | machines.Unavailable
        ],
        pending_deletes: Sequence[PendingDelete],
        request: AcquireRequest,
        wait_until: float | None = None,
    ) -> Attempted:
        """Drive ``machine``, which asks for one lock for each of ``pending_deletes``, and hold all of them or none.

        The pending deletes are for what the machine leaves in doubt, or a signal interrupts. Times are as in
        ``LockManager.acquire``.
        """
        locks: list[Lock] = []
        refused: list[Conflict] = []
        record = request.record
        try:
            due = self._due(session, wait_until)
            for pending in pending_deletes:
                session.intend(pending, due)

            def observe(reply: StoreReply) -> None:
                session.observe(reply)
                if isinstance(reply, Queued):
                    (pending,) = pending_deletes  # several have no queue position
                    if not owns(reply.keys, pending.token, record.limit):
                        self._tell(LockWaiting(pending.name, record, Conflict(pending.name, reply.keys).holder))

            outcome = await steer(machine, asking, self._clock, observe=observe, stop=request.stop)
            outcomes = outcome.outcomes if isinstance(outcome, machines.EachAcquired) else (outcome,)
            each_has_one = isinstance(outcome, machines.EachAcquired)
            for pending, each in zip(pending_deletes, outcomes, strict=each_has_one):
                name = pending.name
                if isinstance(each, machines.Acquired):
                    lock = Lock(
                        name,
                        each.fencing_token,
                        token=pending.token,
                        record=record,
                        session=session,
                        doubtful=each.doubtful,
                        has_run=each.has_run,
                    )
                    locks.append(lock)
                elif isinstance(each, machines.Conflicted):
                    refused.append(Conflict(name, each.keys, each.has_run))
                elif isinstance(each, machines.Refused):
                    refused.append(Conflict(name, each.keys))
            if len(locks) == len(pending_deletes):
                lost = await self._hold(asking, locks, pending_deletes, request)
                return locks if lost is None else lost
            self._settle(session, outcome, pending_deletes)
        except BaseException:
            # Interrupted half-way, by a signal or an error: our keys may be there.
            for pending in pending_deletes:
                held = next((lock for lock in locks if lock.token == pending.token), None)
                self._keeper.schedule_delete(session, pending, held)
            raise
        if isinstance(outcome, machines.SessionLost):
            return outcome
        if isinstance(outcome, machines.Unavailable):
            raise outcome.error
        return max(refused, key=lambda conflict: len(conflict.keys))

    def _due(self, session: Session, wait_until: float | None) -> float:
        """By when an acquire has come to its end, or to its deadline, or has to find out that it is late."""
        begins = max(self._clock(), wait_until or 0.0)
        return begins + 3 * self._timeout_seconds + session.ttl_seconds

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
                # Only a lock that its holder gets has it told of a loss: one that is taken anew must interrupt nobody.
                lock.on_lost = request.on_lost
                if request.on_held is not None:
                    request.on_held(lock)
                if request.on_lost is not None and lock.lost:
                    request.on_lost(lock)  # lost before the renewal's thread could know whom to tell
        in_time = [session.settle(pending) for pending in pending_deletes]
        if lost is None and not all(in_time):
            raise LockUnavailable("the acquire took too long: what it left may be deleted already", maybe_applied=True)
        return lost

    def _settle(self, session: Session, outcome: object, pending_deletes: Sequence[PendingDelete]) -> None:
        """What the pending deletes come to when there is no lock."""
        if isinstance(outcome, machines.SessionLost):
            session.lose(outcome.reason)
        for pending in pending_deletes:
            if isinstance(outcome, machines.Unavailable) and outcome.doubtful:
                self._keeper.schedule_delete(session, pending)
            else:
                session.settle(pending)

    async def _lost_at_once(
        self, asking: StoreAccess, session: Session, locks: Sequence[Lock]
    ) -> machines.SessionLost | None:
        """A body is entered with live locks: renew them first when less than half of their time is left (rule 8).

        If one of them is lost all the same, none is kept: ours are the keys that the next try would meet.
        """
        if locks and session.remaining() < session.ttl_seconds / 2:
            await asking.call(self._keeper.renew, session)
        for lock in locks:
            if lock.lost:  # alone, or with their session
                break
        else:
            return None
        deadline = self._clock() + self._timeout_seconds * (1 - TRYING)
        for lock in locks:
            session.end_hold(lock)
            resolve = machines.Resolve(lease=session.lease, name=lock.name, token=lock.token, deadline=deadline)
            if not isinstance(await steer(resolve, asking, self._clock, observe=session.observe), machines.Resolved):
                raise LockUnavailable("the session of this process was lost, and its locks aren't gone yet")
        return machines.SessionLost(session.lost_reason() or "a key of its was deleted at once")
