"""Without any one fix the simulator finds the fault, so each fix is needed, and the simulator sees that.

That the same plans hold with all fixes in place is said here too: a property that is always broken finds nothing.
"""

from __future__ import annotations

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.plan import make_plan
from tests.simulation.shrink import shrink
from tests.simulation.world import Outcome, play

#: From the first seed that is known to find it on.
MOST_SEEDS = 60


def find(mutation: Mutation) -> Outcome:
    outcome = None
    for seed in range(mutation.first_seed, mutation.first_seed + MOST_SEEDS):
        outcome = play(make_plan(seed, mutation.focus))
        if outcome.violation is not None:
            break
    assert outcome is not None
    return outcome


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_missing_fix_is_found(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        mutation.apply(without)
        outcome = find(mutation)
    assert outcome.violation is not None, "nothing found"
    assert outcome.violation.rule in mutation.shows_as, outcome.violation
    with_it = play(outcome.plan)
    assert with_it.violation is None, f"{with_it.violation}\nwith the fix too, so this finds something else"


def test_a_schedule_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    mutation = next(each for each in MUTATIONS if each.name == "nobody leaves a mark")
    mutation.apply(monkeypatch)
    found = find(mutation)
    small = shrink(found, play, most_plays=100)
    assert small.violation is not None
    assert found.violation is not None
    assert small.violation.rule == found.violation.rule
    kinds = [action.kind for action in small.plan.actions]
    assert len(kinds) < 4, small.plan
    assert "call" in kinds
