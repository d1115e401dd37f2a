"""Locks that stand without renewal: of messages that haven't started, of fixed windows, of least holds.

Each key says until when it stands, by the wall clock and by the age of the lease that it lies on (``core.expiry``).
That lease is shared and never renewed (``locking.shared_leases``). What a request leaves in doubt is a pending delete,
which is done in the background: these keys may change hands, so each try is marked as such (``Record.attempt``), and
only what it wrote itself is deleted.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from celery_etcdlock.core import protocol as machines
from celery_etcdlock.core.expiry import ending
from celery_etcdlock.core.operations import AwaitChange, LookForMark, TryAcquire
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, KeyKind, Record
from celery_etcdlock.core.replies import MarkSeen
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.driver import TRYING, drive
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.outcomes import Claim, Conflict
from celery_etcdlock.locking.session import PendingDelete, Session
from celery_etcdlock.locking.shared_leases import SharedLeases

#: Try-locks in one round trip; etcd allows 128 operations in a transaction by default.
TRIES_AT_A_TIME = 100

Outcome = TypeVar("Outcome")

#: Is given each key that was put before whoever asked for it gets it: he may be struck in between.
OnClaimed = Callable[[Claim], object]


class Claims:
    """See the module. Raises ``LockUnavailable`` where the store can't be asked, ``timeout_seconds`` after it was.

    ``on_abandoned`` is called with a session that has keys to be deleted.
    """

    def __init__(
        self,
        store: LockStore,
        clock: Clock,
        timeout_seconds: float,
        wall_clock: Callable[[], float] = time.time,
        on_abandoned: Callable[[Session], object] | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._timeout_seconds = timeout_seconds
        self._leases = SharedLeases(store, clock, on_abandoned=on_abandoned)

    @property
    def wall_offset(self) -> float:
        return self._wall_clock() - self._clock()

    def look(self, name: str) -> tuple[Key, ...]:
        """All keys under the name, in order, less those whose time was over, which are deleted."""
        return self._drive(machines.LookAt(name=name, deadline=self._deadline(), wall_offset=self.wall_offset)).keys

    def is_superseded(self, task_id: str) -> bool:
        """Whether this task must not run, because a newer one took its place in the queue."""
        reply = self._store.perform(LookForMark(task_id), self._timeout_seconds)
        return isinstance(reply, MarkSeen) and reply.replaced

    def await_change(self, key: Key, name: str, seconds: float) -> None:
        """Wait until ``key`` is deleted or rewritten, or the time is over."""
        self._store.perform(AwaitChange(name, key.mod_revision, key.token), seconds)

    def claim_each(
        self, wanted: Sequence[tuple[str, Record]], seconds: float, on_claimed: OnClaimed | None = None
    ) -> list[Claim | Conflict]:
        """Try each lock for itself, many in one round trip. They stand for ``seconds``. No name twice.

        The records say what the keys are to be: claims or windows (``key_kinds``).
        """
        outcomes: list[Claim | Conflict] = []
        for start in range(0, len(wanted), TRIES_AT_A_TIME):
            outcomes += self._claim(wanted[start : start + TRIES_AT_A_TIME], seconds, machines.AcquireEach, on_claimed)
        return outcomes

    def claim_all(
        self, wanted: Sequence[tuple[str, Record]], seconds: float, on_claimed: OnClaimed | None = None
    ) -> list[Claim | Conflict]:
        """Take all locks, or none: then there is a ``Conflict`` among the outcomes. No name twice."""
        return self._claim(wanted, seconds, machines.AcquireAll, on_claimed)

    def _claim(
        self,
        wanted: Sequence[tuple[str, Record]],
        seconds: float,
        kind: type[machines.AcquireEach],
        on_claimed: OnClaimed | None,
    ) -> list[Claim | Conflict]:
        pending_deletes = [
            PendingDelete(name, secrets.token_hex(12), attempt=secrets.token_hex(6)) for name, _ in wanted
        ]

        def attempt(session: Session, give_up_at: float, deadline: float) -> machines.AcquireEach:
            tries = []
            for pending, (name, record) in zip(pending_deletes, wanted, strict=True):
                put = self._ending(record, pending, seconds, session)
                tries.append(TryAcquire(session.lease, session.epoch, name, pending.token, put))
            offset = self.wall_offset
            return kind(tuple(tries), epoch=session.epoch, give_up_at=give_up_at, deadline=deadline, wall_offset=offset)

        return self._on_lease(seconds, attempt, pending_deletes, on_claimed)[1]

    def take_position(
        self, name: str, record: Record, seconds: float, on_claimed: OnClaimed | None = None
    ) -> tuple[Claim, tuple[Key, ...]]:
        """A queue position that stands for ``seconds``, and the keys under the name, as ``Queued`` has them."""
        pending = PendingDelete(name, secrets.token_hex(12), attempt=secrets.token_hex(6))
        position = replace(record, kind=KeyKind.POSITION)
        taken, [claim] = self._on_lease(
            seconds,
            lambda session, give_up_at, deadline: machines.TakePosition(
                lease=session.lease,
                epoch=session.epoch,
                name=name,
                token=pending.token,
                record=self._ending(position, pending, seconds, session),
                give_up_at=give_up_at,
                deadline=deadline,
            ),
            [pending],
            on_claimed,
        )
        assert isinstance(claim, Claim)
        return claim, taken.keys

    def keep(
        self,
        claim: Claim,
        record: Record,
        seconds: float,
        *,
        replaces: str | None = None,
        on_claimed: OnClaimed | None = None,
    ) -> Claim | Conflict:
        """Let the key that ``claim`` knows stand for ``seconds`` from now, with this record, without renewal.

        With ``replaces``, the task of that id is marked so that it doesn't run any more. ``Conflict`` when the key
        isn't as it was known.
        """
        pending = PendingDelete(claim.name, claim.token, attempt=secrets.token_hex(6), replaces=replaces)
        _, [outcome] = self._on_lease(
            seconds,
            lambda session, give_up_at, deadline: machines.TakeOver(
                lease=session.lease,
                epoch=session.epoch,
                name=claim.name,
                token=claim.token,
                record=self._ending(record, pending, seconds, session),
                mod_revision=claim.revision,
                give_up_at=give_up_at,
                deadline=deadline,
                replaces=replaces,
            ),
            [pending],
            on_claimed,
        )
        return outcome

    def drop_ended(self, name: str, delivery: Delivery, *, position_only: bool = False) -> machines.Ended:
        """Delete what stands under ``name`` for a run of a message that has ended (``core.protocol.drop_ended``).

        With ``position_only`` the run goes on, without its queue position.
        """
        return self._drive(
            machines.DropEnded(name=name, delivery=delivery, deadline=self._deadline(), position_only=position_only)
        )

    def drop(self, claim: Claim) -> bool:
        """Delete the key if it is as it was known. Returns whether it was. Late or twice, it does no harm.

        First of all, who was marked as replaced by it may run again.
        """
        deadline = self._deadline()
        if claim.replaces is not None:
            self._drive(machines.GiveBack(task_id=claim.replaces, deadline=deadline))
        return self._drive(
            machines.ReleaseKey(name=claim.name, token=claim.token, mod_revision=claim.revision, deadline=deadline)
        ).was_held

    def _deadline(self) -> float:
        return self._clock() + self._timeout_seconds

    def _drive(self, machine: machines.Machine[Outcome | machines.Unavailable]) -> Outcome:
        outcome = drive(machine, self._store, self._clock)
        if isinstance(outcome, machines.Unavailable):
            raise outcome.error
        return outcome

    def _ending(self, record: Record, pending: PendingDelete, seconds: float, session: Session) -> Record:
        """The record of a key on the session's lease that stands for ``seconds`` from now."""
        now, opened_at, term = self._clock(), session.opened_at, session.term
        offset = self.wall_offset
        return ending(record, pending.attempt, seconds, now=now, wall_offset=offset, opened_at=opened_at, term=term)

    def _on_lease(
        self,
        seconds: float,
        attempt: Callable[[Session, float, float], machines.Machine[Any]],
        pending_deletes: list[PendingDelete],
        on_claimed: OnClaimed | None,
    ) -> tuple[Any, list[Claim | Conflict]]:
        """The outcome of ``attempt`` on a lease, and what it means for each key.

        The keys' deletes are pending from before the first request until their claims were given to ``on_claimed``.
        """
        started_at = self._clock()
        deadline = started_at + self._timeout_seconds
        give_up_at = started_at + self._timeout_seconds * TRYING
        while True:
            session = self._leases.take(seconds, len(pending_deletes), deadline)
            try:
                for pending in pending_deletes:
                    session.intend(pending, deadline + self._timeout_seconds)
                outcome = drive(
                    attempt(session, give_up_at, deadline), self._store, self._clock, observe=session.observe
                )
                found: list[Claim | Conflict] = []
                if isinstance(outcome, machines.SessionLost):
                    session.lose(outcome.reason)
                elif not isinstance(outcome, machines.Unavailable):
                    found = _claims_in(outcome, pending_deletes)
                    for claim in found:
                        if on_claimed is not None and isinstance(claim, Claim):
                            on_claimed(claim)
                if isinstance(outcome, machines.Unavailable) and outcome.doubtful:
                    self._abandon(session, pending_deletes)
                else:
                    in_time = [session.settle(pending) for pending in pending_deletes]
                    if found and not all(in_time):
                        raise LockUnavailable("the claim took too long: it may be gone already", maybe_applied=True)
            except BaseException:
                # Interrupted half-way: our keys may be there.
                self._abandon(session, pending_deletes)
                raise
            if isinstance(outcome, machines.Unavailable):
                raise outcome.error
            if not isinstance(outcome, machines.SessionLost):
                return outcome, found
            if self._clock() >= give_up_at:
                raise LockUnavailable(f"the lease of pending locks was lost: {outcome.reason}")

    def _abandon(self, session: Session, pending_deletes: list[PendingDelete]) -> None:
        for pending in pending_deletes:
            session.abandon(pending)


def _claims_in(outcome: Any, pending_deletes: list[PendingDelete]) -> list[Claim | Conflict]:
    """What became of the key of each pending delete."""
    outcomes = outcome.outcomes if isinstance(outcome, machines.EachAcquired) else (outcome,)
    found: list[Claim | Conflict] = []
    for pending, each in zip(pending_deletes, outcomes, strict=True):
        if isinstance(each, machines.Acquired):
            found.append(Claim(pending.name, pending.token, each.fencing_token, pending.replaces))
        elif isinstance(each, machines.PositionTaken):
            found.append(Claim(pending.name, pending.token, each.mod_revision))
        else:
            found.append(Conflict(pending.name, each.keys))
    return found
