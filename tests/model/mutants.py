"""The production code with one guard removed at a time.

Each mutant says which rule the guard serves, where its absence has to show, and as what. Most weaken the store's
transactions (``places_class``), some the machines or the deadline (``apply``, undone by ``monkeypatch``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from celery_etcdlock.core import ownership
from celery_etcdlock.core.operations import (
    Look,
    Promote,
    Release,
    TryAcquire,
)
from celery_etcdlock.core.protocol import (
    Acquire,
    Acquired,
    Open,
    Renew,
    Renewed,
    Resolve,
    TakeOver,
    Unavailable,
)
from celery_etcdlock.core.protocol.acquire import State
from celery_etcdlock.core.replies import (
    KeptAlive,
    KeysSeen,
    LeaseGranted,
    Owned,
    Present,
    StoreReply,
)
from celery_etcdlock.etcd.key_layout import Compare, Fields
from celery_etcdlock.etcd.lock_transactions import LockTransactions, Transaction
from tests.model import clients

__all__ = [
    "EXCLUSION",
    "MUTANTS",
    "Mutant",
    "PlacesWithoutHandOverGuard",
    "PlacesWithoutReleaseGuard",
    "counts_from_the_answer",
]

EXCLUSION = frozenset({"P1", "P2"})


def _nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@dataclass(frozen=True)
class Mutant:
    name: str
    rule: str
    scenario: str
    shows_as: frozenset[str]
    places_class: type[LockTransactions] = LockTransactions
    apply: Callable[[pytest.MonkeyPatch], None] = _nothing
    one_per_name: bool = True


# --- the store's transactions ---------------------------------------------------------------------------------------


class PlacesWithoutTokenCheck(LockTransactions):
    """A repeated try-lock that is refused because of its own key says that somebody holds the lock."""

    def _tried(self, operation: TryAcquire, response: Any, revision: int) -> StoreReply:
        if response.succeeded:
            return Owned(revision)
        return self._why_refused(operation, response, revision)


def _is_there(key: bytes) -> Fields:
    return {"key": key, "target": Compare.CREATE, "result": Compare.GREATER}


class PlacesWithoutReleaseGuard(LockTransactions):
    """Deletes the key as long as it is there, whoever wrote it last."""

    def _release(self, operation: Release) -> Fields:
        request = super()._release(operation)
        request["compare"] = [_is_there(compare["key"]) for compare in request["compare"]]
        return request


class PlacesWithoutHandOverGuard(LockTransactions):
    """Takes over a message's lock as long as the key is there, whoever has it by now."""

    def _promote(self, operation: Promote) -> Fields:
        request = super()._promote(operation)
        if operation.record.attempt is not None:
            request["compare"][1] = _is_there(request["compare"][1]["key"])
        return request


class PlacesWithoutLookAtAllThatPrecede(LockTransactions):
    """A woken waiter is promoted if its own key is as it wrote it."""

    def _promote(self, operation: Promote) -> Fields:
        return super()._promote(replace(operation, alone=False))


class PlacesWithoutEpoch(LockTransactions):
    """Takes a place whatever the session's epoch."""

    def request(self, operation: Transaction) -> Fields:
        request = super().request(operation)
        kept = [compare for compare in request["compare"] if not compare["key"].startswith(self._layout.sessions)]
        return request | {"compare": kept}


class PlacesWithoutSeenRevision(LockTransactions):
    """A try-lock with a limit above one puts its key although others came since it looked."""

    def _try_acquire(self, operation: TryAcquire) -> Fields:
        if operation.seen_revision:
            operation = replace(operation, seen_revision=2**40)
        return super()._try_acquire(operation)


# --- the machines ---------------------------------------------------------------------------------------------------


def without_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Resolve.__init__

    def looks_only(self: Any, **arguments: Any) -> None:
        start(self, **arguments)
        self._step = Look(arguments["name"])

    monkeypatch.setattr(Resolve, "__init__", looks_only)


def without_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    on = Acquire.on

    def never_in_doubt(self: Any, reply: Any, now: float) -> Any:
        step = on(self, reply, now)
        return replace(step, doubtful=False) if isinstance(step, Acquired) else step

    monkeypatch.setattr(Acquire, "on", never_in_doubt)


def without_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    on = TakeOver.on

    def any_work_is_ours(self: Any, reply: Any, now: float) -> Any:
        if isinstance(reply, Present):
            mine = next((key for key in reply.keys if key.token == self.token), None)
            if mine is not None:
                return Acquired(mine.mod_revision)
        return on(self, reply, now)

    monkeypatch.setattr(TakeOver, "on", any_work_is_ours)


def without_attempt_when_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Resolve, "_is_anothers", lambda self, key: False)


def without_resolve_of_a_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    on_failed = TakeOver._on_failed

    def gives_up_at_once(self: Any, error: Any, now: float) -> Any:
        return Unavailable(error) if now >= self.give_up_at else on_failed(self, error, now)

    monkeypatch.setattr(TakeOver, "_on_failed", gives_up_at_once)


def with_doubtful_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "ended_without_doubt", lambda outcome: True)


def without_list(monkeypatch: pytest.MonkeyPatch) -> None:
    on = Acquire.on

    def forgets_the_token(self: Any, reply: Any, now: float) -> Any:
        step = on(self, reply, now)
        return replace(step, doubtful=False) if isinstance(step, Unavailable) else step

    monkeypatch.setattr(Acquire, "on", forgets_the_token)


def without_reread(monkeypatch: pytest.MonkeyPatch) -> None:
    on = Renew.on

    def trusts_the_keepalive(self: Any, reply: Any, now: float) -> Any:
        if isinstance(reply, KeptAlive):
            return Renewed(ownership.trust_deadline(self._sent_at, reply.ttl_seconds), frozenset())
        return on(self, reply, now)

    monkeypatch.setattr(Renew, "on", trusts_the_keepalive)


def without_term(monkeypatch: pytest.MonkeyPatch) -> None:
    on = Renew.on

    def any_leader_will_do(self: Any, reply: Any, now: float) -> Any:
        return on(self, replace(reply, term=self._term) if isinstance(reply, KeysSeen) else reply, now)

    monkeypatch.setattr(Renew, "on", any_leader_will_do)


def counts_from_the_answer(machine: type[Any], answer: type[Any]) -> Callable[[pytest.MonkeyPatch], None]:
    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        on = machine.on

        def counts_from_the_answer(self: Any, reply: Any, now: float) -> Any:
            if isinstance(reply, answer):
                self._sent_at = now
            return on(self, reply, now)

        monkeypatch.setattr(machine, "on", counts_from_the_answer)

    return apply


def without_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "MARGIN_SECONDS", 0.0)


def without_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "DRIFT", 0.0)


def without_count(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Acquire._send

    def promotes_at_once(self: Any, now: float) -> Any:
        if self._state is State.PROMOTING and self._mine is not None:
            return self._promote(alone=False, now=now)
        return send(self, now)

    monkeypatch.setattr(Acquire, "_send", promotes_at_once)


def without_smallest_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_etcdlock.core.protocol.acquire.effective_limit", lambda limit, keys: limit)
    monkeypatch.setattr(ownership, "effective_limit", lambda limit, keys: limit)


GHOST = frozenset({"rule 3"})
TIME = "leases and a slow clock"

MUTANTS = (
    Mutant(
        "the token check",
        "ambiguous answers",
        "try-lock, limit 1",
        frozenset({"token check"}),
        PlacesWithoutTokenCheck,
    ),
    Mutant(
        "the mod_revision compare of release",
        "rule 1",
        "handed over to a successor",
        EXCLUSION,
        PlacesWithoutReleaseGuard,
    ),
    Mutant(
        "the look at all that precede",
        "rule 2",
        "ordered wait, one gives up",
        EXCLUSION,
        PlacesWithoutLookAtAllThatPrecede,
    ),
    Mutant(
        "the count of those that precede, limit 2",
        "rule 2",
        "ordered wait, limit 2",
        EXCLUSION,
        apply=without_count,
    ),
    Mutant("the session's epoch", "rule 3", "try-lock, limit 1", GHOST, PlacesWithoutEpoch),
    Mutant("the fence before a token is forgotten", "rule 3", "try-lock, limit 1", GHOST, apply=without_fence),
    Mutant("the doubt about a success after a time-out", "rule 3", "try-lock, limit 1", GHOST, apply=without_doubt),
    Mutant(
        "no second use of a token in doubt",
        "rule 3",
        "tokens left in doubt",
        EXCLUSION | {"P3"},
        apply=with_doubtful_tokens,
    ),
    Mutant("the list of tokens in doubt", "rule 3", "tokens left in doubt", GHOST, apply=without_list),
    Mutant(
        "the mod_revision compare of a hand-over",
        "rule 1",
        "a message's lock, two copies of it and a stranger",
        EXCLUSION,
        PlacesWithoutHandOverGuard,
    ),
    Mutant(
        "whose work a key that was taken over is",
        "ambiguous answers",
        "a message's lock, two copies of it and a stranger",
        EXCLUSION | {"P3"},
        apply=without_attempt,
    ),
    Mutant(
        "whose work a key is that is resolved",
        "rule 3",
        "a message's lock, a copy gives up",
        EXCLUSION | {"rule 11"},
        apply=without_attempt_when_resolved,
    ),
    Mutant(
        "the fence before a take-over is given up",
        "rule 3",
        "a message's lock, a copy gives up",
        GHOST,
        apply=without_resolve_of_a_take_over,
    ),
    Mutant("one operation per name in a Txn", "rule 4", "transactions shared", EXCLUSION, one_per_name=False),
    Mutant(
        "the revision that was looked at",
        "rule 5",
        "try-lock, limit 2",
        EXCLUSION,
        PlacesWithoutSeenRevision,
    ),
    Mutant(
        "the smallest limit counts",
        "rule 5",
        "wait and try-lock, limits differ",
        EXCLUSION,
        apply=without_smallest_limit,
    ),
    Mutant(
        "the re-read after a keepalive",
        "rule 9",
        "an administrator deletes keys and revokes leases",
        frozenset({"rule 9"}),
        apply=without_reread,
    ),
    Mutant("one leader's term", "rule 9", "leader changes", EXCLUSION, apply=without_term),
    Mutant("t_sent before a keepalive", "rule 9", TIME, EXCLUSION, apply=counts_from_the_answer(Renew, KeptAlive)),
    Mutant(
        "t_sent before a grant",
        "P2",
        "sessions opened and lost",
        EXCLUSION,
        apply=counts_from_the_answer(Open, LeaseGranted),
    ),
    Mutant(
        "t_sent before a parent's keepalive",
        "rule 9",
        "a parent renews for its child",
        EXCLUSION,
        apply=counts_from_the_answer(Renew, KeptAlive),
    ),
    Mutant(
        "one leader's term when a parent renews",
        "rule 9",
        "a parent renews while the leader changes",
        EXCLUSION,
        apply=without_term,
    ),
    Mutant("the margin", "P2", TIME, EXCLUSION, apply=without_margin),
    Mutant("the drift", "P2", TIME, EXCLUSION, apply=without_drift),
)
