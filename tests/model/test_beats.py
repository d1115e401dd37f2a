"""No interleaving sends a tick under two ids, twice without a reason, or never; without any one guard, some does."""

from __future__ import annotations

from typing import Any

import pytest

from celery_etcdlock.core.operations import SaveStates
from celery_etcdlock.core.protocol import Save
from celery_etcdlock.etcd.state_transactions import States
from tests.model.beats import Exploration, Rules

SCENARIOS = {
    "at least once, an answer lost and a death": Rules(pauses=0),
    "at least once, a death and a pause": Rules(losses=0),
    "at least once, an answer lost and a pause": Rules(deaths=0),
    "at least once, two answers lost": Rules(losses=2, pauses=0, deaths=0),
    "at least once, three schedulers, two deaths": Rules(schedulers=3, losses=0, deaths=2, pauses=0),
    "at most once": Rules(at_least_once=False),
    "at most once, two answers lost": Rules(at_least_once=False, losses=2, pauses=0),
    "nothing happens": Rules(losses=0, deaths=0, pauses=0, ticks=3),
}


@pytest.mark.parametrize("rules", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_every_tick_is_sent_as_promised(rules: Rules) -> None:
    exploration = Exploration(rules)
    schedule = exploration.run()
    assert not schedule, "\n".join([exploration.broken.rule, *schedule])
    assert exploration.at_rest
    assert exploration.states > (300 if rules.losses or rules.deaths else 10)


class WithoutGuard(States):
    """A late claim of one whose lock is another's takes effect."""

    def request(self, operation: SaveStates) -> Any:
        request = super().request(operation)
        del request["compare"][0]
        return request


class WithoutSeen(States):
    """A save that arrives twice takes effect twice, and undoes what came between."""

    def request(self, operation: SaveStates) -> Any:
        request = super().request(operation)
        del request["compare"][1:]
        return request


class WithoutEither(States):
    def request(self, operation: SaveStates) -> Any:
        request = super().request(operation)
        del request["compare"][:]
        return request


class TakesAllForItsOwn(Save):
    """What it finds after a refusal is its own, whatever it is."""

    def _mine(self, states: tuple[Any, ...]) -> tuple[int, ...] | None:
        return tuple(state.revision for state in states)


MUTANTS: dict[str, tuple[Rules, frozenset[str]]] = {
    "the claim isn't guarded by the lock": (
        Rules(states_class=WithoutEither),
        frozenset({"one id", "once", "none lost", "overtaken"}),
    ),
    "the claim doesn't compare what was seen": (
        Rules(states_class=WithoutSeen, losses=2, pauses=0),
        frozenset({"one id", "once", "none lost"}),
    ),
    "only what was seen guards the claim": (
        Rules(states_class=WithoutGuard, deaths=0),
        frozenset({"overtaken"}),
    ),
    "whatever is there counts as ours": (
        Rules(states_class=WithoutGuard, save_class=TakesAllForItsOwn, asks_the_lock=False),
        frozenset({"one id", "once", "none lost"}),
    ),
    "a claim in doubt is forgotten": (Rules(keeps_doubtful_claims=False), frozenset({"overtaken"})),
    "what was left is sent under a new id": (Rules(keeps_ids=False), frozenset({"one id"})),
    "what was left isn't sent": (Rules(sends_what_was_left=False), frozenset({"none lost"})),
}


@pytest.mark.parametrize(("rules", "shows_as"), MUTANTS.values(), ids=MUTANTS.keys())
def test_a_missing_guard_is_found(rules: Rules, shows_as: frozenset[str]) -> None:
    exploration = Exploration(rules)
    schedule = exploration.run()
    assert schedule, "nothing found"
    assert exploration.broken.rule in shows_as, "\n".join([exploration.broken.rule, *schedule])
