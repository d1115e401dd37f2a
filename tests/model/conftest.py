"""Prints what was explored at the end of the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.model.explorer import Report

_REPORTS = pytest.StashKey[list[Report]]()


@pytest.fixture
def reported(request: pytest.FixtureRequest) -> Callable[[Report], Report]:
    """Has a report shown in the terminal's summary."""

    def keep(report: Report) -> Report:
        request.config.stash.setdefault(_REPORTS, []).append(report)
        return report

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = config.stash.get(_REPORTS, [])
    if not reports:
        return
    terminalreporter.section("model exploration")
    for report in reports:
        terminalreporter.line(str(report))
    states, seconds = sum(report.states for report in reports), sum(report.seconds for report in reports)
    terminalreporter.line(f"{states} states in {len(reports)} explorations, {seconds:.0f} s")
