"""What becomes of a duplicate: every lifetime and policy, in every place of a canvas, on a real worker.

Run as a program it prints the tables for ``docs/semantics.md`` as they are observed; ``test_semantics`` compares.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import chain, chord, group
from celery.result import AsyncResult

from celery_etcdlock import LockConflict
from tests.integration.workers.conftest import Project
from tests.waiting import wait_for

DOCUMENT = Path(__file__).parents[3] / "docs/semantics.md"
COLUMNS = (
    *("single", "in a group", "in a chord's header", "a chord's body"),
    *("first of a chain", "middle", "last", "its own retry", "eager"),
)
POLICIES = ("skip", "raise", "retry", "wait", "join", "replace")
SECONDS = 60.0

#: By the heading of their table: the lifetime, and where its holder is.
TABLES = {
    "while_executing": "running",
    "until_executing": "queued",
    "until_executed": "running",
    "until_and_while_executing, one is queued": "queued",
    "until_and_while_executing, one runs": "running",
    "until_expired": "ended",
}


def documented() -> dict[str, dict[str, list[str]]]:
    """The tables as they are written: heading, policy, cells."""
    tables: dict[str, dict[str, list[str]]] = {}
    for section in re.split(r"^### ", DOCUMENT.read_text(), flags=re.M)[1:]:
        heading = section.splitlines()[0].replace("`", "")
        # Up to the next heading of any depth: other sections have tables of other things.
        rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", re.split(r"^#+ ", section, flags=re.M)[0], flags=re.M)
        tables[heading] = {policy: cells.split(" | ") for policy, cells in rows}
    return tables


def observe(project: Project, heading: str) -> dict[str, list[str]]:
    """One table: all its cells at the same time, each with a key and a holder of its own."""
    lifetime, place = heading.partition(",")[0], TABLES[heading]
    tasks = {policy: project.module.TABLE.get((lifetime, policy)) for policy in POLICIES}
    cells = {
        (policy, column): _Cell(project, task, column, f"{policy}-{column}")
        for policy, task in tasks.items()
        if task is not None
        for column in COLUMNS
    }
    for cell in cells.values():
        cell.hold(place)
    if place == "running":
        project.bodies.wait_entered(sum(cell.holder is not None for cell in cells.values()))
    for cell in cells.values():
        cell.start()
    wait_for(lambda: all(cell.is_settled() for cell in cells.values()), "every duplicate was looked at", 60)
    project.bodies.end_all()
    return {
        policy: [cells[policy, column].outcome() for column in COLUMNS]
        for policy, task in tasks.items()
        if task is not None
    }


class _Cell:
    def __init__(self, project: Project, task: Any, column: str, key: str) -> None:
        self.project, self.task, self.column, self.key = project, task, column, key
        self.plain = project.module.plain
        self.holder: AsyncResult[Any] | None = None
        self.result: Any = None
        self.duplicate: Any = None
        self.follows: list[Any] = []
        self.error: str | None = None

    def hold(self, place: str) -> None:
        if self.column == "its own retry":
            return
        if place == "queued":
            self.holder = self.task.apply_async((self.key, 0.2), countdown=9)
        elif place == "running":
            self.holder = self.task.delay(self.key, SECONDS)
        else:
            self.holder = self.task.delay(self.key)
            self.holder.get(timeout=30)

    def start(self) -> None:
        task, plain, key = self.task, self.plain, self.key
        canvas: dict[str, Callable[[], Any]] = {
            "single": lambda: task.delay(key),
            "in a group": lambda: group(task.si(key), plain.si())(),
            "in a chord's header": lambda: chord([task.si(key), plain.si()], plain.si())(),
            "a chord's body": lambda: chord([plain.si(), plain.si()], task.si(key))(),
            "first of a chain": lambda: chain(task.si(key), plain.si(), plain.si())(),
            "middle": lambda: chain(plain.si(), task.si(key), plain.si())(),
            "last": lambda: chain(plain.si(), plain.si(), task.si(key))(),
            "its own retry": lambda: task.delay(key, retry_once=True),
            "eager": lambda: task.apply((key,)),
        }
        try:
            result = canvas[self.column]()
        except LockConflict:
            self.error = "raises"
            return
        self.duplicate = result
        if self.column == "in a group":
            self.duplicate, *self.follows = result.results
        elif self.column == "in a chord's header":
            self.duplicate, self.follows = result.parent.results[0], [result]
        elif self.column == "first of a chain":
            self.duplicate, self.follows = result.parent.parent, [result.parent, result]
        elif self.column == "middle":
            self.duplicate, self.follows = result.parent, [result]

    def is_settled(self) -> bool:
        """Ended, or it has come back at least once, so that nothing is decided by who is quicker."""
        if self.error or self.column == "its own retry" or self.holder is None:
            return True
        return self.duplicate.id == self.holder.id or self.duplicate.state in ("RETRY", "SUCCESS", "FAILURE", "REVOKED")

    def outcome(self) -> str:
        if self.error:
            return self.error
        if self.column == "eager":
            return self._describe(self.duplicate)
        if self.holder is not None and self.duplicate.id == self.holder.id:
            assert self.duplicate.get(timeout=SECONDS, propagate=False) is not None
            return "holder's"
        text = self._describe(self.duplicate)
        if self.follows:
            words = list(dict.fromkeys(self._describe(each) for each in self.follows))
            text += " → " + ", ".join(words)
        return text

    def _describe(self, result: AsyncResult[Any]) -> str:
        value = result.get(timeout=SECONDS, propagate=False, disable_sync_subtasks=False)
        if result.state != "SUCCESS":
            return str(result.state)
        if self.holder is not None and value == self.holder.id:
            return "joined"
        return "ran"


def table(rows: dict[str, list[str]]) -> str:
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    lines += [f"| `{policy}` | {' | '.join(cells)} |" for policy, cells in rows.items()]
    return "\n".join(lines)
