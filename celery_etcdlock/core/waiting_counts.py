"""Messages that wait for a lock without a queue position, counted by the workers that have them.

``retry`` and ``join`` put nothing under the lock's name while they wait: a message comes back later, and in between a
worker has it in its memory, with a delay. So each worker counts those that it has and leaves the counts as a note under
the prefix (``worker.count_waiting``); whoever looks adds the notes up.

A note is bounded: it lists the names that most messages wait for, and sums up the rest. A note that can't be read
counts as none: the counts are for people, and no lock depends on them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from celery_etcdlock.core.name_escaping import escape_name

#: Names that a worker lists one by one.
MOST_NAMES = 100
#: What is longer isn't a segment of ours (``core.name_escaping``).
LONGEST_SEGMENT = 1000
GREATEST_COUNT = 1_000_000_000


@dataclass(frozen=True, slots=True)
class WaitingCount:
    """Messages that come back for a lock: to try again (``retrying``), or for another run's result (``joining``)."""

    retrying: int = 0
    joining: int = 0

    def __add__(self, other: WaitingCount) -> WaitingCount:
        return WaitingCount(self.retrying + other.retrying, self.joining + other.joining)

    @property
    def total(self) -> int:
        return self.retrying + self.joining


NONE = WaitingCount()
RETRYING = WaitingCount(retrying=1)
JOINING = WaitingCount(joining=1)


@dataclass(frozen=True, slots=True)
class WaitingCounts:
    """By the segment of a lock's name in the store; ``others``: for names that aren't listed."""

    of: Mapping[str, WaitingCount] = field(default_factory=dict)
    others: WaitingCount = NONE

    @property
    def total(self) -> WaitingCount:
        return sum(self.of.values(), self.others)


def count(messages: Iterable[tuple[str, WaitingCount]]) -> WaitingCounts:
    """``messages``: the name of the lock that each waits for, and how. Those that most wait for are listed."""
    by_name = _summed(messages)
    order = sorted(by_name, key=lambda name: (-by_name[name].total, name))
    listed = {escape_name(name): by_name[name] for name in order[:MOST_NAMES]}
    return WaitingCounts(listed, sum((by_name[name] for name in order[MOST_NAMES:]), NONE))


def add_up(each: Iterable[WaitingCounts]) -> WaitingCounts:
    notes = list(each)
    of = _summed(one for counts in notes for one in counts.of.items())
    return WaitingCounts(of, sum((counts.others for counts in notes), NONE))


def _summed(counts: Iterable[tuple[str, WaitingCount]]) -> dict[str, WaitingCount]:
    found: dict[str, WaitingCount] = {}
    for name, one in counts:
        found[name] = found.get(name, NONE) + one
    return found


def write_note(counts: WaitingCounts) -> str:
    """The note; empty where nothing waits."""
    if not counts.total.total:
        return ""
    of = {segment: [one.retrying, one.joining] for segment, one in sorted(counts.of.items())}
    return json.dumps({"v": 1, "of": of, "others": [counts.others.retrying, counts.others.joining]})


def read_note(text: str) -> WaitingCounts:
    """Raises nothing, whatever the text is."""
    try:
        note = json.loads(text)
    except (ValueError, RecursionError):
        return WaitingCounts()
    match note:
        case {"v": 1, "of": dict(of), "others": others} if len(of) <= MOST_NAMES:
            read = {segment: _read(one) for segment, one in of.items() if 0 < len(segment) <= LONGEST_SEGMENT}
            return WaitingCounts({segment: one for segment, one in read.items() if one.total}, _read(others))
    return WaitingCounts()


def _read(written: object) -> WaitingCount:
    match written:
        case [int(retrying), int(joining)] if min(written) >= 0 and max(written) <= GREATEST_COUNT:
            return WaitingCount(retrying, joining)
    return NONE
