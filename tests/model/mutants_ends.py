"""Mutants of keys that stand without renewal: their ends, and queue positions. See ``mutants``."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest

from celery_etcdlock.core import expiry
from celery_etcdlock.core.expiry import Expiry
from celery_etcdlock.core.operations import AwaitChange
from celery_etcdlock.core.protocol import Acquire, AcquireEach, Open
from celery_etcdlock.core.replies import (
    LeaseAge,
    LeaseGranted,
    LeaseUnknown,
)
from celery_etcdlock.etcd.etcd_store import EtcdStore
from tests.model import without_renewal
from tests.model.mutants import (
    EXCLUSION,
    Mutant,
    PlacesWithoutHandOverGuard,
    PlacesWithoutReleaseGuard,
    counts_from_the_answer,
)

__all__ = ["ENDS_MUTANTS"]


def by_wall_clock_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Expiry, "judged", lambda self, key, age, asked_at, now: None)


def frees_what_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Expiry.judged

    def gone(self: Any, key: Any, age: Any, asked_at: float, now: float) -> Any:
        return None if isinstance(age, LeaseUnknown) else judged(self, key, age, asked_at, now)

    monkeypatch.setattr(Expiry, "judged", gone)


def whatever_the_term(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Expiry.judged

    def after_an_election(self: Any, key: Any, age: Any, asked_at: float, now: float) -> Any:
        age = replace(age, term=age.term + 1) if isinstance(age, LeaseAge) else age
        return judged(self, key, age, asked_at, now)

    monkeypatch.setattr(Expiry, "judged", after_an_election)


def by_the_lease_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "LONGEST_SKEW_SECONDS", inf)


def rounds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    perform = EtcdStore.perform

    def a_second_more(self: Any, operation: Any, timeout_seconds: float) -> Any:
        reply = perform(self, operation, timeout_seconds)
        return replace(reply, seconds=reply.seconds + 1) if isinstance(reply, LeaseAge) else reply

    monkeypatch.setattr(EtcdStore, "perform", a_second_more)


def tries_as_if_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    again = AcquireEach._again

    def as_if_seen(self: Any, each: Any, present: Any, now: float) -> Any:
        following = again(self, each, present, now)
        return None if following is None else replace(following, seen_revision=present.revision)

    monkeypatch.setattr(AcquireEach, "_again", as_if_seen)


def sleeps_on(monkeypatch: pytest.MonkeyPatch) -> None:
    on = Acquire.on

    def until_the_wait_is_over(self: Any, reply: Any, now: float) -> Any:
        step = on(self, reply, now)
        if isinstance(step, AwaitChange):
            self.answer_by = self.wait_until
        return step

    monkeypatch.setattr(Acquire, "on", until_the_wait_is_over)


def whoever_precedes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(without_renewal, "owns", lambda keys, token, limit: True)


EARLY = frozenset({"rule 11"})
STUCK = frozenset({"progress"})
AHEAD = "a window, and clocks ten minutes ahead"
LATE_WORKER = "a message's lock whose time is over, its worker and others"

ENDS_MUTANTS = (
    Mutant("the age of the lease", "rule 11", AHEAD, EARLY, apply=by_wall_clock_alone),
    Mutant("the wake-up for a key that ends", "rule 11", AHEAD, STUCK, apply=sleeps_on),
    Mutant(
        "the second that etcd may round up",
        "rule 11",
        "a window of a host that is ten minutes behind",
        EARLY,
        apply=rounds_up,
    ),
    Mutant("the term of the grant", "rule 11", "a window and a clock an hour ahead", EARLY, apply=whatever_the_term),
    Mutant(
        "the wall clock's say after an election",
        "rule 11",
        "a long window and an election near its end",
        STUCK,
        apply=by_the_lease_alone,
    ),
    Mutant(
        "a second look where the lease isn't known",
        "rule 11",
        "a window and leader changes",
        EARLY,
        apply=frees_what_is_unknown,
    ),
    Mutant(
        "t_sent before the grant of a lease that isn't renewed",
        "rule 11",
        "a window on a lease that is slow to open",
        EARLY,
        apply=counts_from_the_answer(Open, LeaseGranted),
    ),
    Mutant(
        "the mod_revision compare of a delete for somebody else",
        "rule 1",
        LATE_WORKER,
        EXCLUSION,
        PlacesWithoutReleaseGuard,
    ),
    Mutant("the look after a key was cleared", "rule 5", LATE_WORKER, EXCLUSION, apply=tries_as_if_seen),
    Mutant(
        "the look at all that precede a queue position",
        "rule 2",
        "a queue position, a holder and another who tries",
        EXCLUSION,
        apply=whoever_precedes,
    ),
    Mutant(
        "the mod_revision compare of a queue position",
        "rule 1",
        "a queue position, two copies of its message and a holder",
        EXCLUSION | {"P3"},
        PlacesWithoutHandOverGuard,
    ),
)
