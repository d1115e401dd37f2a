"""Judges the spans: did two bodies of one key overlap, did fencing tokens rise.

Bodies note their start after they got the lock and their end before they let it go, so with a lock two spans of a key
can't even touch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from examples.demo.journal import Span


@dataclass(frozen=True)
class Overlap:
    """Two bodies of one key that ran at once, ``start`` to ``end``."""

    first: Span
    second: Span

    @property
    def start(self) -> float:
        return self.second.start

    @property
    def end(self) -> float:
        return min(end_of(self.first), end_of(self.second))

    def __str__(self) -> str:
        seconds = self.end - self.start
        how_long = f"for {seconds:.2f} s" if math.isfinite(seconds) else "and still do"
        return f"{self.first.key}: {_body(self.first)} and {_body(self.second)} ran at once {how_long}"


def end_of(span: Span) -> float:
    return math.inf if span.end is None else span.end


def by_key(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """The spans of each key by their start."""
    keys: defaultdict[str, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start):
        keys[span.key].append(span)
    return dict(keys)


def overlaps(spans: Iterable[Span]) -> list[Overlap]:
    """Every pair of one key that ran at once."""
    found = []
    for of_key in by_key(spans).values():
        running: list[Span] = []
        for span in of_key:
            running = [earlier for earlier in running if end_of(earlier) > span.start]
            found += [Overlap(earlier, span) for earlier in running]
            running.append(span)
    return found


def most_at_once(spans: Iterable[Span]) -> int:
    """How many bodies ran at once at most, whatever their keys."""
    steps: list[tuple[float, int]] = []
    for span in spans:
        steps += [(span.start, 1), (end_of(span), -1)]
    most = now = 0
    for _, step in sorted(steps):  # an end goes before a start at the same time
        now += step
        most = max(most, now)
    return most


def tokens_rise(spans: Iterable[Span]) -> bool:
    """Whether each new body of a key had a higher fencing token than the one before."""
    return all(rises([span.token for span in of_key]) for of_key in by_key(spans).values())


def rises(tokens: Sequence[int]) -> bool:
    return all(earlier < later for earlier, later in pairwise(tokens)) and 0 not in tokens


def _body(span: Span) -> str:
    return f"{span.worker}'s pid {span.pid}"
