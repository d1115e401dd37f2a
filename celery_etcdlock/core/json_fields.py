"""Checks of what others wrote into the store as JSON: each returns the value or raises ``ValueError``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")


def optional(fields: Mapping[str, Any], name: str, check: Callable[[object], Value]) -> Value | None:
    """``None`` for a field that isn't there; one that is there as ``null`` is no value."""
    return check(fields[name]) if name in fields else None


def several(value: object, number_of_them: int) -> list[Any]:
    if not (isinstance(value, list) and len(value) == number_of_them):
        raise ValueError("not a list of so many")
    return value


def pair(value: object) -> tuple[int, int]:
    first, second = several(value, 2)
    return count(first), count(second)


def text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a count")
    return value


def number(value: object, most: float = 1e15) -> float:
    # The comparison refuses NaN too.
    if type(value) not in (int, float) or not -most <= float(value) <= most:  # type: ignore[arg-type]
        raise ValueError("not a time")
    return float(value)  # type: ignore[arg-type]
