"""Production with one fix taken out at a time: what the simulator must find.

Each says what goes wrong without the fix, as the breach of which rules that shows, and which plans make it likely. A
signal between two lines isn't among them: no thread is switched there. For that, see the test that strikes at every
line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from celery_etcdlock.core import expiry, key_kinds
from celery_etcdlock.core.conflict_decision import Place
from celery_etcdlock.core.key_kinds import Relation
from celery_etcdlock.core.protocol import drop_ended
from celery_etcdlock.core.record import Delivery, KeyKind, Record
from celery_etcdlock.locking import claims
from celery_etcdlock.locking.session import PendingDelete, Session
from celery_etcdlock.tasks.execution import message_claims, redelivery, run_under_lock
from celery_etcdlock.tasks.execution.held_locks import HeldLocks
from celery_etcdlock.tasks.execution.redelivery import Redelivery
from celery_etcdlock.tasks.message import headers
from celery_etcdlock.worker import free_never_started, gate
from tests.simulation.plan import Focus

__all__ = ["MUTATIONS", "Mutation"]

NO_SKEW = {"offsets": (0.0,) * 8, "duplicate": 0.0}
SKEW = {"offsets": (90.0, -80.0, 40.0, 0.0, -90.0, 80.0, 95.0, -30.0), "visibility": 250.0}


@dataclass(frozen=True)
class Mutation:
    name: str
    shows_as: frozenset[str]
    focus: Focus
    apply: Callable[[pytest.MonkeyPatch], None]
    first_seed: int = 0


def _relations(monkeypatch: pytest.MonkeyPatch, change: Callable[[Record, Delivery, Relation], Relation]) -> None:
    real = key_kinds.relation

    def relation(record: Record | None, delivery: Delivery) -> Relation:
        found = real(record, delivery)
        return found if record is None else change(record, delivery, found)

    monkeypatch.setattr(key_kinds, "relation", relation)
    monkeypatch.setattr(message_claims, "relation", relation)


def position_is_taken_for_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message takes its own place in line for a key that its producer left, and runs beside the holder."""

    def change(record: Record, delivery: Delivery, found: Relation) -> Relation:
        return Relation.OURS if found is Relation.OUR_POSITION else found

    _relations(monkeypatch, change)


def debt_names_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that settles its doubt deletes the key as it is now: the running holder's."""

    def abandon(self: claims.Claims, session: Session, pending_deletes: list[PendingDelete]) -> None:
        for pending in pending_deletes:
            session.settle(pending)
            session.abandon(pending._replace(attempt=None))

    monkeypatch.setattr(claims.Claims, "_abandon", abandon)


def doubt_is_never_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer's claim without an answer stays until its time is over, unless the process claims again."""
    monkeypatch.setattr(claims.Claims, "_abandon", lambda self, session, pending_deletes: None)


def handover_outlives_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry that is revoked or expires keeps the key that was left for it."""
    real = drop_ended.ends_with

    def ends_with(record: Record | None, delivery: Delivery) -> bool:
        return real(record, delivery) and record is not None and record.kind is not KeyKind.HANDOVER

    monkeypatch.setattr(drop_ended, "ends_with", ends_with)


def revoked_task_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the message's headers say what it held, and those of a retry know nothing of what was left for it."""
    real = free_never_started.FreeNeverStarted.free

    def free(self: Any, carrier: Any, task: Any = None) -> None:
        real(self, carrier)

    monkeypatch.setattr(free_never_started.FreeNeverStarted, "free", free)


def release_is_interrupted_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit that strikes in the release leaves a key that is renewed for ever."""

    def end_each(self: HeldLocks, do: Callable[[Any], object]) -> None:
        while self._held:
            do(self._held.pop(0))

    monkeypatch.setattr(HeldLocks, "end_each", end_each)
    monkeypatch.setattr(Session, "begin_release", lambda self, lock, debt, due: self.end_hold(lock))
    monkeypatch.setattr(Session, "hurry", lambda *_: None)


def retry_is_stored_after_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Celery, over what its retry has stored by then."""
    monkeypatch.setattr(run_under_lock, "store_retry", lambda context, retry: False)
    monkeypatch.setattr(run_under_lock, "has_result", lambda context: False)


def a_lost_result_stays_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of what ran to its end, and died before Celery stored that, ends without a word."""
    monkeypatch.setattr(redelivery, "await_or_replace", lambda context: None)


def only_copies_leave_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With early acks, the first leaves no mark, and its copy runs after it."""

    def has_copies(self: Redelivery) -> bool:
        task, call = self._context.task, self._context.call
        if call.place is not Place.WORKER:
            return False
        info = call.request.delivery_info if isinstance(call.request.delivery_info, dict) else {}
        return bool(task.acks_late or info.get("redelivered"))

    monkeypatch.setattr(Redelivery, "_has_copies", property(has_copies))


def no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody leaves a mark."""
    monkeypatch.setattr(Redelivery, "_has_copies", property(lambda self: False))


def handover_is_anybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the run that left a key for the retry takes it, finds that it has run, and lets go of it."""

    def change(record: Record, delivery: Delivery, found: Relation) -> Relation:
        return Relation.OURS if record.kind is KeyKind.HANDOVER and found is not Relation.STRANGER else found

    _relations(monkeypatch, change)


def wall_clock_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is ahead frees others' windows and claims."""
    monkeypatch.setattr(expiry.Expiry, "judged", lambda self, *_: None)


def any_number_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that is no number ends the MainProcess."""

    def number_in(carrier: Any, name: str) -> float:
        return float(headers.header(carrier, name) or 0.0)  # type: ignore[arg-type]

    def admit(self: gate.Gate, request: Any) -> Any:
        return None if self._waits_here(request) else self._pass_on(request)

    monkeypatch.setattr(headers, "number_in", number_in)
    monkeypatch.setattr(gate.Gate, "admit", admit)


def long_ids_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record knows a part of a long task id, so its message looks like a stranger."""
    from celery_etcdlock.core import record as record_module

    real = record_module.encode_record

    def encode_record(record: Record) -> bytes:
        delivery = dataclasses.replace(record.delivery, task_id=record.delivery.task_id[:512])
        return real(dataclasses.replace(record, delivery=delivery))

    from celery_etcdlock.etcd import lock_transactions

    monkeypatch.setattr(lock_transactions, "encode_record", encode_record)


EXECUTED = {"lock": "until_executed", "pending_ttl": 200.0, "limit": 1, "unique_for": None, "hold": 0.0}

MUTATIONS = (
    Mutation(
        "a place in line is taken for a claim",
        frozenset({"P1", "lifetime"}),
        Focus(
            spec={**EXECUTED, "enqueue": "wait", "run": "wait"},
            config={**NO_SKEW, "lose_reply": 0.1, "gate": False, "on_unavailable": "retry"},
            faults=("flaky",),
        ),
        position_is_taken_for_a_claim,
    ),
    Mutation(
        "a debt names no attempt",
        frozenset({"P1", "lifetime"}),
        Focus(
            spec={**EXECUTED, "enqueue": "raise", "run": "retry", "soft": None, "hard": None},
            config={**NO_SKEW, "on_unavailable": "retry", "producers": 2, "workers": 2},
            faults=("deaf",),
            who=("producer0", "producer1"),
            least_faults=4,
            least_work=4.0,
            revokes=0.0,
            expires=0.0,
            retries=0.0,
        ),
        debt_names_no_attempt,
        first_seed=100,
    ),
    Mutation(
        "a producer's doubt is never paid",
        frozenset({"left behind", "told a ghost", "told an old result"}),
        Focus(
            spec={**EXECUTED, "enqueue": "skip", "run": "skip"},
            config={**NO_SKEW, "on_unavailable": "raise", "lose_reply": 0.1},
            faults=("deaf", "flaky"),
        ),
        doubt_is_never_paid,
        first_seed=11,
    ),
    Mutation(
        "what was left for a retry outlives it",
        frozenset({"left behind", "told an old result"}),
        Focus(
            spec={**EXECUTED, "enqueue": "skip", "run": "skip", "soft": None, "hard": None},
            config=NO_SKEW,
            faults=("compact",),
            revokes=0.5,
            expires=0.5,
            retries=1.0,
        ),
        handover_outlives_its_message,
    ),
    Mutation(
        "a revoked message's task isn't known",
        frozenset({"left behind", "told an old result"}),
        Focus(
            spec={**EXECUTED, "enqueue": "retry", "run": "retry", "soft": None, "hard": None},
            config={**NO_SKEW, "on_unavailable": "retry"},
            faults=("compact",),
            revokes=0.5,
            expires=0.7,
            retries=1.0,
        ),
        revoked_task_is_a_name,
    ),
    Mutation(
        "a time limit in the release leaves the lock",
        frozenset({"left behind", "left for ever"}),
        Focus(
            spec={**EXECUTED, "enqueue": "retry", "run": "retry", "soft": 1.0, "hard": None},
            config={**NO_SKEW, "lose_reply": 0.1, "on_unavailable": "retry", "max_tasks_per_child": None},
            faults=("slow",),
            who=("worker0",),
            least_faults=4,
            least_work=0.6,
            retries=0.0,
            revokes=0.0,
        ),
        release_is_interrupted_for_good,
        first_seed=9,
    ),
    Mutation(
        "RETRY is stored after the release",
        frozenset({"lost"}),
        Focus(
            spec={**EXECUTED, "soft": None, "hard": None},
            config={**NO_SKEW, "max_tasks_per_child": None},
            faults=("deaf", "slow"),
            who=("runner",),
            least_faults=5,
            revokes=0.9,
            expires=0.5,
            retries=1.0,
        ),
        retry_is_stored_after_the_release,
    ),
    Mutation(
        "a lost result stays lost",
        frozenset({"lost"}),
        Focus(
            spec={"late": True, "requeue_lost": True},
            config={"cancels": True, "max_tasks_per_child": None},
            faults=("connection lost", "slow", "deaf"),
            who=("runner",),
            least_faults=6,
        ),
        a_lost_result_stays_lost,
    ),
    Mutation(
        "only copies leave marks",
        frozenset({"ran again"}),
        Focus(spec={"late": False, "requeue_lost": False}, config=NO_SKEW, faults=("compact",), copies=0.8),
        only_copies_leave_marks,
    ),
    Mutation(
        "nobody leaves a mark",
        frozenset({"ran again"}),
        Focus(config=NO_SKEW, faults=("connection lost",), copies=0.8),
        no_marks,
    ),
    Mutation(
        "what is left for a retry is anybody's",
        frozenset({"lifetime", "ran again", "P1"}),
        Focus(
            spec={**EXECUTED, "enqueue": "raise", "run": "raise", "soft": None, "hard": None, "late": False},
            config={**NO_SKEW, "delay": 1.0},
            faults=("compact",),
            copies=0.9,
            revokes=0.0,
            expires=0.0,
            retries=1.0,
        ),
        handover_is_anybodys,
        first_seed=21,
    ),
    Mutation(
        "the wall clock decides that a key is over",
        frozenset({"lifetime"}),
        Focus(
            spec={
                "lock": "until_expired",
                "enqueue": "raise",
                "run": None,
                "unique_for": 25.0,
                "pending_ttl": None,
                "hold": 0.0,
                "limit": 1,
            },
            config={**SKEW, "producers": 3},
            faults=("compact",),
        ),
        wall_clock_decides,
    ),
    Mutation(
        "any header counts as a number",
        frozenset({"a thread ends"}),
        Focus(config={**NO_SKEW, "gate": True}, faults=("compact",), forged=1.0),
        any_number_will_do,
    ),
    Mutation(
        "long task ids are cut",
        frozenset({"lifetime", "lost", "left behind", "P1", "ran again", "wrong end"}),
        Focus(
            spec={**EXECUTED, "enqueue": "raise", "run": "raise", "soft": None, "hard": None},
            config=NO_SKEW,
            faults=("compact",),
            retries=1.0,
            revokes=0.0,
            expires=0.0,
            own_ids=1.0,
        ),
        long_ids_are_cut,
    ),
)
