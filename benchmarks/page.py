"""Puts a run's tables and plot into ``docs/``: ``python -m benchmarks.page RESULTS.json...``.

Each ``<!-- figures: NAME -->`` of a page is followed by that measurement's table up to ``<!-- end -->``: no figure of a
table is typed by hand. Of several runs, each given by its file, the last that has a measurement counts.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.places import ROOT
from benchmarks.plot import svg
from benchmarks.result import formatted, verdict

PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "scaling.md")
PLOT = ROOT / "docs" / "performance.svg"
PLACE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(results: Sequence[Path]) -> None:
    reports = [json.loads(path.read_text()) for path in results]
    report = {"measurements": {name: of for one in reports for name, of in one["measurements"].items()}}

    def fill(found: re.Match[str]) -> str:
        name = found[2]
        if name == "machine":
            return found[1] + "".join(_machine(one) for one in reports) + found[3]
        outcome = report["measurements"].get(name)
        return found[0] if outcome is None or "error" in outcome else found[1] + _markdown(outcome) + found[3]

    for page in PAGES:
        page.write_text(PLACE.sub(fill, page.read_text()))
    PLOT.write_text(svg(report))


def _machine(report: dict[str, Any]) -> str:
    of = report["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in of["packages"].items())
    return (
        f"- {', '.join(report['measurements'])}: run of {report['started']}; {of['cpu']}, "
        f"{of['cores']} cores, {of['system']}, Python {of['python']}, etcd {of['etcd']}, {packages}\n"
    )


def _markdown(outcome: dict[str, Any]) -> str:
    columns: dict[str, str] = outcome["columns"]
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "-|" * len(columns)]
    for row in outcome["rows"]:
        if "not_measured" in row:
            first, *_ = columns
            lines.append(f"| {row[first]} | not measured: {row['not_measured']} |" + " |" * (len(columns) - 2))
        else:
            lines.append("| " + " | ".join(formatted(row.get(key)) for key in columns) + " |")
    goals = [f"- **{verdict(goal['met'])}**{_value(goal)}: {goal['text']}" for goal in outcome["goals"]]
    notes = [f"- {note}" for note in outcome["notes"]]
    busy = outcome.get("busy_percent_during")
    if busy is not None:
        notes.append(f"- the machine was busy to {busy:.0f} % on the whole, this measurement's own work included")
    return "\n".join(["", *lines, "", *goals, *([""] if goals else []), *notes, "", ""])


def _value(goal: dict[str, Any]) -> str:
    return "" if goal["value"] is None else f" ({goal['value']:.2f})"


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
