"""A strike at every place of all that takes, holds and releases a lock: none is left behind, and the next one works.

A time limit's signal, for one, may strike anywhere. What is struck is in ``scenarios``, and in ``group_commit`` by
threads that share a call. It is a process of its own that does it (``python -m tests.strikes``), for in there the
package is imported with a call at every place (``instrument``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.strikes.group_commit import WAYS
from tests.strikes.scenarios import SCENARIOS

NAMES = [*(scenario.__name__ for scenario in SCENARIOS), *WAYS]

#: Of all strikes together: half a minute's work.
SECONDS = 900

ROOT = Path(__file__).parents[2]

#: Whose call is taken along does little but wait.
FEWEST_EVENTS = {"be_taken_along": 50}

pytestmark = pytest.mark.timeout(SECONDS + 60)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each, by name; the whole output where the process didn't come to its end."""
    folder = tmp_path_factory.mktemp("strikes")
    told, said = folder / "stdout", folder / "stderr"
    command = [sys.executable, "-m", "tests.strikes"]
    with (
        told.open("w") as stdout,
        said.open("w") as stderr,
        subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=stderr) as process,
    ):
        try:
            process.wait(SECONDS)
        finally:
            process.kill()
    found = {report["name"]: report for report in map(json.loads, told.read_text().splitlines())}
    for name in NAMES:
        if name not in found:
            trouble = f"the process ended before ({process.returncode}):\n{said.read_text()[-8000:]}"
            found[name] = {"strikes": 0, "events": 0, "troubles": [trouble]}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_strike_leaves_nothing_behind(reports: dict[str, dict[str, Any]], name: str) -> None:
    report = reports[name]
    troubles = report["troubles"]
    if troubles:
        pytest.fail("\n\n".join([f"{len(troubles)} of {report['strikes']} strikes", *troubles[:3]]), pytrace=False)
    assert report["events"] > FEWEST_EVENTS.get(name, 70), "it strikes nowhere"


def test_there_are_thousands_of_places(reports: dict[str, dict[str, Any]]) -> None:
    assert sum(report["strikes"] for report in reports.values()) > 3000
