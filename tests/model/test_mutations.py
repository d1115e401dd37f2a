"""Without any one guard the exploration fails, so each guard is needed, and the explorer sees that.

That the same scenarios hold with all guards in place is ``test_exploration``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.model.explorer import Explorer, Report
from tests.model.mutants import MUTANTS, Mutant
from tests.model.mutants_ends import ENDS_MUTANTS
from tests.model.scenarios import by_name


@pytest.mark.parametrize("mutant", MUTANTS + ENDS_MUTANTS, ids=lambda mutant: f"{mutant.rule}: {mutant.name}")
def test_a_missing_guard_is_found(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch, reported: Callable[[Report], Report]
) -> None:
    mutant.apply(monkeypatch)
    explorer = Explorer(
        by_name(mutant.scenario),
        places_class=mutant.places_class,
        one_per_name=mutant.one_per_name,
        most_states=100_000,
    )
    report = explorer.run()
    report.scenario = f"without {mutant.name} ({mutant.rule})"
    reported(report)
    assert report.violation is not None, f"nothing found: {report}"
    assert report.violation.rule in mutant.shows_as, report.explain()
    # A schedule to read, not just a verdict.
    assert report.schedule
