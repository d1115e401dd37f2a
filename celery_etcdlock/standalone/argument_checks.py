"""Checks of what users pass to a lock without a task. Each error names the argument and says what it may be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from celery_etcdlock.core.value_checks import shown

FOREVER = float("inf")


def names_in(name: str | Sequence[str]) -> tuple[str, ...]:
    """One name, or several that are locked together."""
    if isinstance(name, str) and name:
        return (name,)
    names = tuple(name) if isinstance(name, list | tuple) else ()
    if not names or not all(isinstance(each, str) and each for each in names):
        raise ValueError(f"name must be a non-empty str, or a list of them, not {shown(name) or 'an empty str'}")
    if len(set(names)) < len(names):
        raise ValueError("name: a list of names has one of them twice")
    return names


def wait_seconds(wait_timeout: float | None, argument: str = "wait_timeout") -> float:
    """Seconds to wait; infinite for ``None``."""
    if wait_timeout is None:
        return FOREVER
    is_number = isinstance(wait_timeout, int | float) and not isinstance(wait_timeout, bool)
    if not is_number or not 0 <= wait_timeout < FOREVER:
        raise ValueError(
            f"{argument} must be a finite number of seconds, at least 0, or None to wait for ever, not "
            f"{shown(wait_timeout)}"
        )
    return float(wait_timeout)


def seconds_to_wait(blocking: bool, timeout: float | None, default: float) -> float:
    """What ``acquire(blocking, timeout)`` asks for. ``timeout=None`` is the object's own ``wait_timeout``."""
    if not isinstance(blocking, bool):
        raise ValueError(f"blocking must be True or False, not {shown(blocking)}: acquire(timeout=5) waits 5 seconds")
    if timeout is None:
        return default if blocking else 0.0
    seconds = wait_seconds(timeout, "timeout")
    if seconds and not blocking:
        raise ValueError("timeout says how long to wait, and blocking=False not to wait at all: leave one out")
    return seconds


def checked(argument: str, check: Callable[[Any], int], value: object) -> int:
    """As for a task's options. ``check`` says what is wrong, without the name."""
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"{argument} {error}") from None


def check_note(note: object) -> str | None:
    if note is not None and (not isinstance(note, str) or not note):
        raise ValueError(f"note must be a non-empty str, not {shown(note) or 'an empty str'}")
    return note


def check_on_lost(on_lost: Any) -> Callable[[Any], object] | None:
    if on_lost is not None and (not callable(on_lost) or inspect.iscoroutinefunction(on_lost)):
        raise ValueError("on_lost must be a plain function of one argument, the lock that was lost")
    function: Callable[[Any], object] | None = on_lost
    return function
