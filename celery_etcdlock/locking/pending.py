"""Locks that stand without renewal: of messages that haven't started, of fixed windows, of least holds.

Each key says until when it stands (``Record.until``). The lease under it only collects garbage (rule 11): it outlives
the key, is shared by up to `KEYS_PER_LEASE` of them, and is never renewed, so a producer may end at once.

Leases come in sizes of powers of two. One of size S lives for twice S and takes keys that stand for at most S seconds,
for as long as it is itself no older than S. Each carries a session of its own, whose epoch fences the producer's late
requests as a worker's does (rule 3). What stays in doubt is a debt, and is paid before the lease is used again.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from celery_etcdlock.core.operations import (
    AwaitChange,
    Look,
    LookForMark,
    TryAcquire,
)
from celery_etcdlock.core.ownership import Key, is_over
from celery_etcdlock.core.protocol import (
    AcquireAll,
    Acquired,
    AcquireEach,
    EachAcquired,
    Machine,
    Open,
    Opened,
    Placed,
    Refused,
    ReleaseKey,
    Resolve,
    Resolved,
    SessionLost,
    TakeOver,
    TakePlace,
    Unavailable,
)
from celery_etcdlock.core.record import Record
from celery_etcdlock.core.replies import (
    MarkSeen,
    Present,
)
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.claim import Claim, Conflict
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.session import Debt, Session
from celery_etcdlock.locking.store import LockStore

__all__ = ["PendingLocks"]

logger = logging.getLogger("celery_etcdlock")

KEYS_PER_LEASE = 2000
SMALLEST_LEASE_SECONDS = 64

#: Try-locks in one round trip; etcd allows 128 operations in a transaction by default.
TRIES_AT_A_TIME = 100

#: The part of the time for a claim that is spent on trying; the rest is kept to resolve an unanswered request.
TRYING = 0.75

#: How long the payment of one debt may take, in seconds, before a claim that has nothing to do with it goes on.
DEBT_SECONDS = 0.5

Outcome = TypeVar("Outcome")


class PendingLocks:
    """See the module. Raises ``LockUnavailable`` where the store can't be asked, ``timeout_seconds`` after it was."""

    def __init__(
        self,
        store: LockStore,
        clock: Clock,
        timeout_seconds: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._timeout_seconds = timeout_seconds
        # Held across I/O, so a greenlet's under gevent.
        self._opening = threading.Lock()
        self._leases: dict[int, _Lease] = {}

    @property
    def wall_offset(self) -> float:
        return self._wall_clock() - self._clock()

    # --- taking -----------------------------------------------------------------------------------------------

    def claim_each(self, wanted: Sequence[tuple[str, Record]], seconds: float) -> list[Claim | Conflict]:
        """Try each lock for itself, many in one round trip. They stand for ``seconds``. No name twice."""
        outcomes: list[Claim | Conflict] = []
        for start in range(0, len(wanted), TRIES_AT_A_TIME):
            outcomes += self._claim(wanted[start : start + TRIES_AT_A_TIME], seconds, AcquireEach)
        return outcomes

    def claim_all(self, wanted: Sequence[tuple[str, Record]], seconds: float) -> list[Claim | Conflict]:
        """Take all locks, or none: then there is a ``Conflict`` among the outcomes. No name twice."""
        return self._claim(wanted, seconds, AcquireAll)

    def _claim(
        self, wanted: Sequence[tuple[str, Record]], seconds: float, kind: type[AcquireEach]
    ) -> list[Claim | Conflict]:
        until = round(self._wall_clock() + seconds, 3)
        records = [replace(record, until=until) for _, record in wanted]
        tokens = [secrets.token_hex(12) for _ in wanted]

        def attempt(session: Session, give_up_at: float, deadline: float) -> AcquireEach:
            tries = tuple(
                TryAcquire(session.lease, session.epoch, name, token, record)
                for (name, _), token, record in zip(wanted, tokens, records, strict=True)
            )
            return kind(
                tries,
                epoch=session.epoch,
                give_up_at=give_up_at,
                deadline=deadline,
                wall_offset=self.wall_offset,
            )

        debts = [Debt(name, token) for (name, _), token in zip(wanted, tokens, strict=True)]
        outcome = self._on_lease(seconds, attempt, debts)
        assert isinstance(outcome, EachAcquired)
        return [
            Claim(name, token, each.fencing_token) if isinstance(each, Acquired) else Conflict(name, each.keys)
            for (name, _), token, each in zip(wanted, tokens, outcome.outcomes, strict=True)
        ]

    def take_place(self, name: str, record: Record, seconds: float) -> tuple[Claim, tuple[Key, ...]]:
        """A place in line that stands for ``seconds``, and the keys under the name, as ``Queued`` has them."""
        token = secrets.token_hex(12)
        standing = replace(record, until=round(self._wall_clock() + seconds, 3), in_line=True)

        def attempt(session: Session, give_up_at: float, deadline: float) -> TakePlace:
            return TakePlace(
                lease=session.lease,
                epoch=session.epoch,
                name=name,
                token=token,
                record=standing,
                give_up_at=give_up_at,
                deadline=deadline,
            )

        outcome = self._on_lease(seconds, attempt, [Debt(name, token)])
        assert isinstance(outcome, Placed)
        return Claim(name, token, outcome.mod_revision), outcome.keys

    def look(self, name: str) -> tuple[Key, ...]:
        """All keys under the name, in order, less those whose time was over, which are deleted."""
        deadline = self._clock() + self._timeout_seconds
        while True:
            reply = self._store.perform(Look(name), max(0.0, deadline - self._clock()))
            assert isinstance(reply, Present)
            over = [key for key in reply.keys if is_over(key, self._wall_clock())]
            if not over:
                return reply.keys
            for key in over:
                self.drop(Claim(name, key.token, key.mod_revision))

    def is_replaced(self, task_id: str) -> bool:
        """Whether this task must not run, because a newer one took its place in the queue."""
        reply = self._store.perform(LookForMark(task_id), self._timeout_seconds)
        return isinstance(reply, MarkSeen) and reply.replaced

    def await_change(self, key: Key, name: str, seconds: float) -> None:
        """Wait until ``key`` is deleted or rewritten, or the time is over."""
        self._store.perform(AwaitChange(name, key.mod_revision, key.token), seconds)

    # --- changing hands -----------------------------------------------------------------------------------------

    def keep(self, claim: Claim, record: Record, seconds: float, *, replaces: str | None = None) -> Claim | Conflict:
        """Let the key that ``claim`` knows stand for ``seconds`` from now, with this record, without renewal.

        With ``replaces``, the task of that id is marked so that it doesn't run any more. ``Conflict`` when the key
        isn't as it was known.
        """
        kept = replace(record, until=round(self._wall_clock() + seconds, 3), attempt=secrets.token_hex(6))

        def attempt(session: Session, give_up_at: float, deadline: float) -> TakeOver:
            return TakeOver(
                lease=session.lease,
                epoch=session.epoch,
                name=claim.name,
                token=claim.token,
                record=kept,
                mod_revision=claim.revision,
                give_up_at=give_up_at,
                deadline=deadline,
                replaces=replaces,
            )

        outcome = self._on_lease(seconds, attempt, [Debt(claim.name, claim.token, attempt=kept.attempt)])
        if isinstance(outcome, Acquired):
            return Claim(claim.name, claim.token, outcome.fencing_token)
        assert isinstance(outcome, Refused)
        return Conflict(claim.name, outcome.keys)

    def drop(self, claim: Claim) -> bool:
        """Delete the key if it is as it was known. Returns whether it was. Late or twice, it does no harm."""
        deadline = self._clock() + self._timeout_seconds
        machine = ReleaseKey(name=claim.name, token=claim.token, mod_revision=claim.revision, deadline=deadline)
        outcome = drive(machine, self._store, self._clock)
        if isinstance(outcome, Unavailable):
            raise outcome.error
        return outcome.was_held

    # --- leases -------------------------------------------------------------------------------------------------

    def session(self, seconds: float, deadline: float) -> Session:
        """A session on whose lease one key may be put that stands for ``seconds``. Raises ``LockUnavailable``."""
        return self._lease(seconds, 1, deadline).session

    def _on_lease(
        self,
        seconds: float,
        attempt: Callable[[Session, float, float], Machine[Outcome | SessionLost | Unavailable]],
        debts: list[Debt],
    ) -> Outcome:
        started_at = self._clock()
        deadline = started_at + self._timeout_seconds
        give_up_at = started_at + self._timeout_seconds * TRYING
        while True:
            lease = self._lease(seconds, len(debts), deadline)
            session = lease.session
            try:
                machine = attempt(session, give_up_at, deadline)
                outcome = drive(machine, self._store, self._clock, observe=session.observe)
            except BaseException:
                # Interrupted half-way: our keys may be there.
                self._owe(session, debts)
                raise
            if isinstance(outcome, SessionLost):
                session.lose(outcome.reason)
                if self._clock() >= give_up_at:
                    raise LockUnavailable(f"the lease of pending locks was lost: {outcome.reason}")
                continue
            if isinstance(outcome, Unavailable):
                if outcome.doubtful:
                    self._owe(session, debts)
                raise outcome.error
            return outcome

    def _lease(self, seconds: float, keys: int, deadline: float) -> _Lease:
        size = SMALLEST_LEASE_SECONDS
        while size < seconds:
            size *= 2
        if not self._opening.acquire(timeout=max(0.0, deadline - self._clock())):
            raise LockUnavailable("the lock store gave no answer in time while a lease was opened")
        try:
            lease = self._leases.get(size)
            if lease is not None:
                self._pay(lease.session)
            if lease is None or not lease.takes(keys, self._clock()):
                lease = self._leases[size] = self._open(size, deadline)
            lease.keys += keys
            return lease
        finally:
            self._opening.release()

    def _open(self, size: int, deadline: float) -> _Lease:
        while True:
            ident = secrets.randbits(62) + 1
            opened_at = self._clock()
            outcome = drive(Open(lease=ident, ttl_seconds=2 * size, deadline=deadline), self._store, self._clock)
            if isinstance(outcome, Opened):
                return _Lease(Session(ident, outcome, self._clock), opened_at + size)
            if isinstance(outcome, Unavailable):
                raise outcome.error
            if self._clock() >= deadline:
                raise LockUnavailable(f"no lease could be opened in time: {outcome.reason}")

    @staticmethod
    def _owe(session: Session, debts: list[Debt]) -> None:
        for debt in debts:
            session.abandon(debt)

    def _pay(self, session: Session) -> None:
        ends_at = self._clock() + DEBT_SECONDS
        for debt in session.debts():
            machine = Resolve(
                lease=session.lease, name=debt.name, token=debt.token, deadline=ends_at, attempt=debt.attempt
            )
            if not isinstance(drive(machine, self._store, self._clock, observe=session.observe), Resolved):
                return
            session.settle(debt)


class _Lease:
    """One shared lease: takes keys until ``closes_at``, on the driver's clock, or until it is full."""

    def __init__(self, session: Session, closes_at: float) -> None:
        self.session = session
        self.keys = 0
        self._closes_at = closes_at

    def takes(self, keys: int, now: float) -> bool:
        return now < self._closes_at and self.keys + keys <= KEYS_PER_LEASE and self.session.lost_reason() is None
