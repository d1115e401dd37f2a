"""From a machine of the protocol to locks that are held: what every acquire has in common, and what may go wrong.

A session that turns out to be lost is no answer: another is opened, and the acquire begins anew. Keys that were put
and can't be trusted are deleted before that, since the next try would take them for somebody else's. What a machine
leaves in doubt, or a signal interrupts half-way, becomes the session's debt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from celery_etcdlock.core.events import LockEvent, LockWaiting
from celery_etcdlock.core.ownership import Standing, standing
from celery_etcdlock.core.protocol import (
    AcquireAll,
    Acquired,
    Conflicted,
    EachAcquired,
    Machine,
    Refused,
    Resolve,
    Resolved,
    SessionLost,
    Unavailable,
)
from celery_etcdlock.core.record import Record
from celery_etcdlock.core.replies import (
    Queued,
    StoreReply,
)
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.claim import Conflict
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.renewal import SessionKeeper
from celery_etcdlock.locking.session import Debt, Session
from celery_etcdlock.locking.store import LockStore

__all__ = ["TRYING", "Owner"]

#: The part of the time for an acquire that is spent on trying; the rest is kept to resolve an unanswered request.
TRYING = 0.75


class Owner:
    """Drives machines that end in ownership. ``tell`` is told of a lock that is waited for."""

    def __init__(
        self,
        store: LockStore,
        keeper: SessionKeeper,
        clock: Clock,
        timeout_seconds: float,
        tell: Callable[[LockEvent], None],
    ) -> None:
        self._store = store
        self._keeper = keeper
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._tell = tell

    def on_session(
        self,
        ttl_seconds: int,
        wait_until: float | None,
        attempt: Callable[[Session, float], object],
    ) -> object:
        """``attempt`` until it isn't for the session's sake that it failed."""
        deadline = self._clock() + self._timeout_seconds
        while True:
            session = self._keeper.enter(ttl_seconds, deadline)
            try:
                outcome = attempt(session, deadline)
            finally:
                session.leave()
            if not isinstance(outcome, SessionLost):
                return outcome
            now = self._clock()
            if wait_until is not None and now < wait_until:
                deadline = now + self._timeout_seconds
            elif now >= deadline:
                raise LockUnavailable(f"the session of this process was lost while it acquired: {outcome.reason}")

    def own(
        self,
        session: Session,
        machine: Machine[Acquired | Conflicted | Refused | SessionLost | Unavailable],
        debt: Debt,
        record: Record,
        on_held: Callable[[Lock], None] | None,
        on_lost: Callable[[Lock], None] | None,
    ) -> Lock | Conflict | SessionLost:
        """Drive ``machine``. What it leaves in doubt, or a signal interrupts, is ``debt``."""
        name, token = debt.name, debt.token
        try:

            def observe(reply: StoreReply) -> None:
                session.observe(reply)
                if isinstance(reply, Queued) and standing(reply.keys, token, record.limit) is Standing.WAITING:
                    self._tell(LockWaiting(name, record, Conflict(name, reply.keys).holder))

            outcome = drive(machine, self._store, self._clock, observe=observe)
            if isinstance(outcome, Acquired):
                lock = Lock(
                    name,
                    outcome.fencing_token,
                    token=token,
                    record=record,
                    session=session,
                    doubtful=outcome.doubtful,
                    has_run=outcome.has_run,
                )
                session.hold(lock)
                lost = self._lost_at_once(session, [lock])
                if lost is not None:
                    return lost
                self._hand_out(lock, on_held, on_lost)
                return lock
        except BaseException:
            # Interrupted half-way, by a signal or an error: our key may be there.
            self._keeper.owe(session, debt)
            raise
        if isinstance(outcome, Conflicted | Refused):
            return Conflict(name, outcome.keys, outcome.has_run if isinstance(outcome, Conflicted) else None)
        if isinstance(outcome, SessionLost):
            session.lose(outcome.reason)
            return outcome
        if outcome.doubtful:
            self._keeper.owe(session, debt)
        raise outcome.error

    def own_all(
        self,
        session: Session,
        machine: AcquireAll,
        debts: list[Debt],
        record: Record,
        on_held: Callable[[Lock], None] | None,
        on_lost: Callable[[Lock], None] | None,
    ) -> list[Lock] | Conflict | SessionLost:
        locks: list[Lock] = []
        try:
            outcome = drive(machine, self._store, self._clock, observe=session.observe)
            if isinstance(outcome, EachAcquired):
                for debt, each in zip(debts, outcome.outcomes, strict=True):
                    if isinstance(each, Acquired):
                        token = each.fencing_token
                        lock = Lock(
                            debt.name, token, token=debt.token, record=record, session=session, has_run=each.has_run
                        )
                        lock.token_is_ours = True
                        session.hold(lock)
                        locks.append(lock)
                lost = self._lost_at_once(session, locks)
                if lost is not None:
                    return lost
                for lock in locks:
                    self._hand_out(lock, on_held, on_lost)
        except BaseException:
            for debt in debts:
                self._keeper.owe(session, debt)
            raise
        if isinstance(outcome, EachAcquired):
            refused = [
                Conflict(debt.name, each.keys, each.has_run)
                for debt, each in zip(debts, outcome.outcomes, strict=True)
                if isinstance(each, Conflicted)
            ]
            return max(refused, key=lambda conflict: len(conflict.keys)) if refused else locks
        if isinstance(outcome, SessionLost):
            session.lose(outcome.reason)
            return outcome
        if outcome.doubtful:
            for debt in debts:
                self._keeper.owe(session, debt)
        raise outcome.error

    def _lost_at_once(self, session: Session, locks: Sequence[Lock]) -> SessionLost | None:
        """A body is entered with live locks: renew them first when less than half of their time is left (rule 8).

        If one of them is lost all the same, none is kept: ours are the keys that the next try would meet.
        """
        if locks and session.remaining() < session.ttl_seconds / 2:
            self._keeper.renew(session)
        if session.lost_reason() is None and not any(lock.lost for lock in locks):
            return None
        deadline = self._clock() + self._timeout_seconds * (1 - TRYING)
        for lock in locks:
            session.let_go(lock)
            resolve = Resolve(lease=session.lease, name=lock.name, token=lock.token, deadline=deadline)
            if not isinstance(drive(resolve, self._store, self._clock, observe=session.observe), Resolved):
                raise LockUnavailable("the session of this process was lost, and its locks aren't gone yet")
        return SessionLost(session.lost_reason() or "a key of its was deleted at once")

    @staticmethod
    def _hand_out(lock: Lock, on_held: Callable[[Lock], None] | None, on_lost: Callable[[Lock], None] | None) -> None:
        """Only a lock that its holder gets has it told of a loss: one that is taken anew must interrupt nobody."""
        lock.on_lost = on_lost
        if on_held is not None:
            on_held(lock)
        if on_lost is not None and lock.lost:
            on_lost(lock)  # lost before the renewal's thread could know whom to tell
