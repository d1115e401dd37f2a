"""Checks of a single value, shared by task options and settings.

A check takes the value and returns it in the form that the rest of the package uses. It raises ``ValueError``
with the end of a sentence ("must be ..."); whoever calls it puts the name of the option or setting in front.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# etcd raises a lease's TTL to its own least, one and a half election timeouts, which is 2 s by default, and
# refuses any above the greatest.
LEAST_TTL_SECONDS = 2
GREATEST_TTL_SECONDS = 9_000_000_000


def shown(value: object) -> str:
    """The value for a message: plain values as they are (shortened), anything else by its type."""
    if value is None or type(value) in (bool, int, float, str):
        try:
            text = repr(value)
        except ValueError:  # an int of more digits than Python is willing to print
            return "a very large int"
        return text if len(text) <= 80 else text[:77] + "..."
    return kind_of(value)


def kind_of(value: object) -> str:
    """The value's type with its article, where the value itself may be a secret: ``a list``, ``an int``."""
    name = type(value).__qualname__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """`` (did you mean 'x'?)``, or nothing when no known name is close.

    A ``prefix`` that all have isn't compared: it would make any two of them close.
    """
    candidates = sorted(word.removeprefix(prefix) for word in known)
    close = difflib.get_close_matches(name.removeprefix(prefix), candidates, n=1, cutoff=0.6)
    return f" (did you mean {prefix + close[0]!r}?)" if close else ""


def no_such_argument(name: str, known: Sequence[str]) -> str:
    """What to say of a name in ``unique_on`` or ``lock_key``."""
    has = ", ".join(known) if known else "no arguments at all"
    return f"names {name!r}, which is no argument of the task{did_you_mean(name, known)}: it has {has}"


def choice(*allowed: str) -> Callable[[Any], str]:
    """A check for one of ``allowed``."""

    def check(value: Any) -> str:
        if isinstance(value, str):
            text = str.__str__(value)  # a str Enum's value, not its repr
            if text in allowed:
                return text
            hint = did_you_mean(text, allowed)
        else:
            hint = ""
        raise ValueError(f"must be {_listed(allowed)}, not {shown(value)}{hint}")

    return check


def check_whole_seconds(value: Any) -> int:
    """A TTL. etcd's leases are counted in whole seconds, so 2.5 is refused and 30.0 is 30."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        raise ValueError(f"must be a whole number of seconds (etcd's leases are), not {shown(value)}")
    if value < LEAST_TTL_SECONDS:
        raise ValueError(f"must be at least {LEAST_TTL_SECONDS} seconds, etcd's least, not {shown(value)}")
    if value > GREATEST_TTL_SECONDS:
        raise ValueError(f"must be at most {GREATEST_TTL_SECONDS} seconds, etcd's greatest, not {shown(value)}")
    return int(value)


def number_of_seconds(value: Any) -> float:
    """A time limit: a finite number of seconds above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"must be a number of seconds, not {shown(value)}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"must be a finite number of seconds above 0, not {shown(value)}")
    return seconds


def check_flag(value: Any) -> bool:
    """A switch."""
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False, not {shown(value)}")
    return value


def check_count(value: Any) -> int:
    """How many of something there may be, none included."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"must be a whole number, at least 0, not {shown(value)}")
    return value


def check_limit(value: Any) -> int:
    """A number of holders."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be a whole number of holders, at least 1, not {shown(value)}")
    return int(value)


def least_seconds(value: Any) -> float:
    """A finite number of seconds, 0 for none."""
    return 0.0 if value == 0 and not isinstance(value, bool) else number_of_seconds(value)


def _listed(words: Iterable[str]) -> str:
    *firsts, last = (repr(word) for word in words)
    return f"{', '.join(firsts)} or {last}" if firsts else last
