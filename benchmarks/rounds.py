"""Statistics of alternating rounds.

Each contender runs once in every round, and the order turns from round to round, so that what else the machine does
hits all alike. A figure is the median of its rounds; a ratio is the median of the rounds' own ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles
from typing import TypeVar

__all__ = ["percentile", "ratio", "rotated", "spread"]

T = TypeVar("T")


def rotated(items: Sequence[T], round_number: int) -> list[T]:
    """The contenders in this round's order."""
    start = round_number % len(items)
    return [*items[start:], *items[:start]]


def percentile(values: Sequence[float], percent: int) -> float:
    """``percent`` from 1 to 99."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return median(upper / lower for upper, lower in zip(numerators, denominators, strict=True))


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles in percent of the median: how far to trust the figure."""
    if len(values) < 2:
        return 0.0
    lower, middle, upper = quantiles(values, n=4, method="inclusive")
    return (upper - lower) / 2 / middle * 100 if middle else 0.0
