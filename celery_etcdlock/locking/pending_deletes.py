"""Deletes that are still due: releases that got no answer, tokens in doubt, keys of messages that ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from celery_etcdlock.core.protocol import DropEnded, Ended, GiveBack, Machine, ReleaseKey, Resolve, Unavailable
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.core.replies import StoreReply
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.session import PendingDelete

#: How many debts are paid at a time, so that nothing else waits long.
DEBTS_AT_A_TIME = 20


@dataclass(frozen=True, slots=True)
class EndedRun:
    """What stood under ``name`` for this run of a message, which has ended, must go; or only its queue position."""

    name: str
    delivery: Delivery
    position_only: bool = False


class HasPendingDeletes(Protocol):
    """Who owes: a session, or ``Releases``."""

    @property
    def lease(self) -> int: ...

    def pending_deletes(self) -> Sequence[PendingDelete | EndedRun]: ...

    def settle(self, debt: Any) -> object: ...

    def observe(self, reply: StoreReply) -> None: ...


class Releases:
    """What is owed for no session of this process: keys that were put for messages."""

    lease = 0

    def __init__(self) -> None:
        self._pending_deletes: dict[PendingDelete | EndedRun, None] = {}

    def schedule_delete(self, debt: PendingDelete | EndedRun) -> None:
        """A ``PendingDelete`` names the revision that it releases."""
        assert isinstance(debt, EndedRun) or debt.mod_revision is not None
        self._pending_deletes[debt] = None

    def pending_deletes(self) -> list[PendingDelete | EndedRun]:
        return list(self._pending_deletes)

    def settle(self, debt: PendingDelete | EndedRun) -> None:
        self._pending_deletes.pop(debt, None)

    def observe(self, reply: StoreReply) -> None:
        """Nothing to learn without a session."""


def flush(
    debtor: HasPendingDeletes,
    store: LockStore,
    clock: Clock,
    answer_by: float,
    sleep: Callable[[float], object] = time.sleep,
) -> bool:
    """Pay some of its debts; false when the store couldn't be brought to it by ``answer_by``."""
    for debt in debtor.pending_deletes()[:DEBTS_AT_A_TIME]:
        for machine in _machines(debt, debtor.lease, answer_by):
            outcome = drive(machine, store, clock, observe=debtor.observe, sleep=sleep)
            if isinstance(outcome, Unavailable):
                return False
        if not (isinstance(outcome, Ended) and outcome.look_again):
            debtor.settle(debt)
    return True


def _machines(debt: PendingDelete | EndedRun, lease: int, answer_by: float) -> Iterator[Machine[object]]:
    """What pays it, one after the other."""
    if isinstance(debt, PendingDelete) and debt.replaces is not None:
        yield GiveBack(task_id=debt.replaces, deadline=answer_by)
    yield _machine(debt, lease, answer_by)


def _machine(debt: PendingDelete | EndedRun, lease: int, answer_by: float) -> Machine[object]:
    if isinstance(debt, EndedRun):
        return DropEnded(name=debt.name, delivery=debt.delivery, deadline=answer_by, position_only=debt.position_only)
    if debt.mod_revision is not None:
        return ReleaseKey(name=debt.name, token=debt.token, mod_revision=debt.mod_revision, deadline=answer_by)
    return Resolve(lease=lease, name=debt.name, token=debt.token, deadline=answer_by, attempt=debt.attempt)
