"""Prints what was explored at the end of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.model.explorer import Report

ReportLine = tuple[str, int, float]  # a report's text, states, seconds

_REPORTS = pytest.StashKey[list[ReportLine]]()


@pytest.fixture
def reported(request: pytest.FixtureRequest) -> Callable[[Report], Report]:
    """Has a report shown in the terminal's summary."""

    def keep(report: Report) -> Report:
        request.config.stash.setdefault(_REPORTS, []).append((str(report), report.states, report.seconds))
        return report

    return keep


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)  # in a process of pytest-xdist
    if output is not None:
        output["explored"] = session.config.stash.get(_REPORTS, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})
    node.config.stash.setdefault(_REPORTS, []).extend(tuple(line) for line in output.get("explored", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(_REPORTS, [])
    if not lines:
        return
    terminalreporter.section("model exploration")
    for text, _, _ in lines:
        terminalreporter.line(text)
    states, seconds = sum(states for _, states, _ in lines), sum(seconds for _, _, seconds in lines)
    terminalreporter.line(f"{states} states in {len(lines)} explorations, {seconds:.0f} s")
