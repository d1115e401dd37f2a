"""Checks of what others wrote into the store as JSON: each returns the value or raises ``ValueError``."""

from __future__ import annotations


def text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a count")
    return value


def number(value: object) -> float:
    # The comparison refuses NaN too.
    if type(value) not in (int, float) or not -1e15 < float(value) < 1e15:  # type: ignore[arg-type]
        raise ValueError("not a time")
    return float(value)  # type: ignore[arg-type]
