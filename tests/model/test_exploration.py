"""Every interleaving of every scenario keeps the promises: P1, P2, P3, no ghost, nobody stuck."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.model.explorer import Explorer, Report
from tests.model.scenarios import SCENARIOS
from tests.model.world import Scenario

DEEP = bool(os.environ.get("CELERY_ETCDLOCK_DEEP"))


@pytest.mark.timeout(7200 if DEEP else 300)
@pytest.mark.parametrize("scenario", [pytest.param(scenario, id=scenario.name) for scenario in SCENARIOS])
def test_holds_in_every_interleaving(scenario: Scenario, reported: Callable[[Report], Report]) -> None:
    report = reported(Explorer(scenario, deep=DEEP).run())
    assert report.violation is None, report.explain()
    # Neither cut short nor empty: it came to rest, and somebody owned the lock on the way.
    assert report.complete or DEEP
    assert report.at_rest
    assert report.beliefs > 10
