"""What runs reached, by kind: so that nobody takes silence for safety where nothing was tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

__all__ = ["Coverage"]


class Coverage:
    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        #: Of single locks: what keys it has, whose and of which run, whoever that is and whenever.
        self.states: set[Hashable] = set()

    def hit(self, kind: str, what: str) -> None:
        self.counts[kind, what] += 1

    def add(self, other: Coverage) -> None:
        self.counts.update(other.counts)
        self.states |= other.states

    def of(self, kind: str) -> dict[str, int]:
        return {what: count for (each, what), count in sorted(self.counts.items()) if each == kind}

    def report(self) -> str:
        kinds = sorted({kind for kind, _ in self.counts})
        counted = "\n".join(
            f"{kind}: " + ", ".join(f"{what} {count}" for what, count in self.of(kind).items()) for kind in kinds
        )
        return f"{counted}\ndistinct states of a lock: {len(self.states)}"
