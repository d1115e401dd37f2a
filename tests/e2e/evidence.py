"""What the tasks' bodies wrote down on the host, and what follows from it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.waiting import wait_for

Event = dict[str, Any]


class Evidence:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._bodies = directory / "bodies"

    def events(self, kind: str, token: int | None = None) -> list[Event]:
        if not self._bodies.exists():
            return []
        # A container that is killed in mid-write may leave half a line.
        lines = [line for line in self._bodies.read_text().split("\n")[:-1] if line.startswith("{")]
        found = [json.loads(line) for line in lines]
        return [event for event in found if event["event"] == kind and token in (None, event["token"])]

    def wait_entered(self, count: int = 1, seconds: float = 40.0) -> Event:
        """The ``count``-th entrance."""
        wait_for(lambda: len(self.events("enter")) >= count, f"{count} bodies have begun", seconds)
        return self.events("enter")[count - 1]

    def wait_exited(self, token: int, seconds: float = 40.0) -> Event:
        wait_for(lambda: self.events("exit", token), f"the body with token {token} has ended", seconds)
        return self.events("exit", token)[0]

    def end_all(self) -> None:
        """Let every body that runs come to its end now."""
        (self.directory / "bodies.end").touch()

    def overlaps(self) -> list[str]:
        """Where somebody still believed in a lock when the next one had entered. In the order of fencing tokens."""
        found = []
        for name in {event["name"] for event in self.events("enter")}:
            entered = sorted(
                (event for event in self.events("enter") if event["name"] == name), key=lambda event: event["token"]
            )
            for first, second in pairwise(entered):
                believed = [event["at"] for event in self.events("believed", first["token"])]
                late = max([first["at"], *believed]) - second["at"]
                if late >= 0:
                    found.append(f"{name}: {first['host']} believed for {late:.3f} s after {second['host']} entered")
        return found
