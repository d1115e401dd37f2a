"""What the bodies note down: one JSON line per event, appended by a single write, so that processes don't mix.

``at`` is CLOCK_MONOTONIC, which all processes of one machine share.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Span:
    """One body, from ``start`` to ``end`` in seconds; ``end`` is None while it runs.

    ``killed``: it ended by a kill, and its lock stayed taken until ``freed`` (None if nobody saw that).
    """

    key: str
    worker: str
    call: str
    token: int
    pid: int
    start: float
    end: float | None
    killed: bool = False
    freed: float | None = None


class Journal:
    """A file that many processes append to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, what: str, **facts: Any) -> float:
        """Append an event. Returns its time."""
        at = time.monotonic()
        line = json.dumps({"what": what, "at": at, **facts}) + "\n"
        # Opened anew: a descriptor wouldn't be safe to keep across Celery's forks.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
        return at

    def events(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        text = self.path.read_text()
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def spans(self) -> list[Span]:
        return spans_of(self.events())


def spans_of(events: Iterable[dict[str, Any]]) -> list[Span]:
    """The bodies, in the order in which they began.

    A ``killed`` event ends all that still ran on its worker, a ``freed`` one tells when a killed one's lock was. A call
    that a broker delivered twice has two spans.
    """
    running: dict[tuple[str, int], Span] = {}
    done: list[Span] = []
    for event in sorted(events, key=lambda event: event["at"]):
        if event["what"] == "enter":
            span = Span(
                event["key"], event["worker"], event["call"], event["token"], event["pid"], event["at"], end=None
            )
            running[span.call, span.pid] = span
        elif event["what"] == "exit":
            span = running.pop((event["call"], event["pid"]))
            done.append(replace(span, end=event["at"]))
        elif event["what"] == "killed":
            for at, span in list(running.items()):
                if span.worker == event["worker"]:
                    done.append(replace(running.pop(at), end=event["at"], killed=True))
        elif event["what"] == "freed":
            lost = {span: replace(span, freed=event["at"]) for span in done if span.killed}
            done = [lost.get(span, span) if span.call == event["call"] else span for span in done]
    return sorted([*done, *running.values()], key=lambda span: span.start)
