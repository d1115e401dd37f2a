"""Counts what went wrong in a lane, from its log alone. Four things, apart:

* *overlaps*: an entrance while an earlier one hadn't exited, by ``CLOCK_MONOTONIC``. Those that happened while the
  earlier holder was stopped (``SIGSTOP``) are counted apart: no lock can keep a paused process from being overtaken.
* *stale writes tried*: writes that came after a later entrance's write; and those of them that were *accepted*.
* *lost*: tasks that had to run, and never came to their end. *Twice*: tasks that came to their end more than once.
* *recovery*: seconds from a fault until somebody entered, or from the end of a body that went on regardless.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]


@dataclass
class Counts:
    seeds: int = 0
    overlaps: int = 0
    overlaps_while_stopped: int = 0
    stale_tried: int = 0
    stale_accepted: int = 0
    kept: int = 0
    lost: int = 0
    twice: int = 0
    recoveries: list[float] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class _Body:
    entrance: int
    task: str
    pids: tuple[int, ...]
    entered: float
    left: float = float("inf")
    completed: bool = False


def _bodies(events: Iterable[Event]) -> list[_Body]:
    bodies: dict[int, _Body] = {}
    for event in events:
        match event["event"]:
            case "enter":
                pids = (event["pid"], *event["helpers"])
                bodies[event["entrance"]] = _Body(event["entrance"], event["task"], pids, event["at"])
            case "exit" if event["entrance"] in bodies:
                bodies[event["entrance"]].left = event["at"]
                bodies[event["entrance"]].completed = event["completed"]
            case "killed":
                for body in bodies.values():
                    if event["pid"] == body.pids[0] and event["at"] < body.left:
                        body.left = event["at"]
    return sorted(bodies.values(), key=lambda body: body.entered)


def _stops(events: Iterable[Event]) -> dict[int, list[tuple[float, float]]]:
    """When each process was stopped, and until when."""
    stops: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        if event["event"] == "stopped":
            stops[event["pid"]].append((event["at"], float("inf")))
        elif event["event"] == "continued" and stops[event["pid"]]:
            since, _ = stops[event["pid"]][-1]
            stops[event["pid"]][-1] = (since, event["at"])
    return stops


def count_overlaps(events: list[Event], counts: Counts) -> None:
    bodies, stops = _bodies(events), _stops(events)
    for number, later in enumerate(bodies):
        for earlier in bodies[:number]:
            if later.entered >= earlier.left:
                continue
            pauses = [pause for pid in earlier.pids for pause in stops[pid]]
            if any(since <= later.entered <= until for since, until in pauses):
                counts.overlaps_while_stopped += 1
            else:
                counts.overlaps += 1


def count(events: list[Event], kept: Iterable[str] = ()) -> Counts:
    """Of the events of one lane in order of time. ``kept``: the ids of tasks that had to run."""
    counts = Counts()
    count_overlaps(events, counts)
    stale = [event for event in events if event["event"] == "stale write"]
    counts.stale_tried = len(stale)
    counts.stale_accepted = sum(event["accepted"] for event in stale)
    ends = Counter(body.task for body in _bodies(events) if body.completed)
    must = set(kept)
    counts.kept = len(must)
    counts.lost = sum(ends[task] == 0 for task in must)
    counts.twice = sum(number > 1 for number in ends.values())
    return counts


def recovery(events: list[Event], fault_at: float) -> float | None:
    """Seconds until somebody entered after the fault; ``None`` when nobody did."""
    bodies = _bodies(events)
    entered = [body.entered for body in bodies if body.entered > fault_at]
    if not entered:
        return None
    # A body that the fault let come to its end held the lock rightly until then.
    ended = [body.left for body in bodies if body.entered <= fault_at < body.left < entered[0] and body.completed]
    return entered[0] - max([fault_at, *ended])
