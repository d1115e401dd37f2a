"""Connects methods of the worker's steps to Celery's signals.

Before 5.7, Celery takes one method of two objects for the same receiver and keeps only the first: of two workers in a
process the second would hear nothing. So each is connected under a name of its own.
"""

from __future__ import annotations

from typing import Any


def connect(signal: Any, method: Any) -> None:
    """Have ``method`` called, and its object kept, until it is disconnected."""
    signal.connect(method, weak=False, dispatch_uid=_name_of(method))


def disconnect(signal: Any, method: Any) -> None:
    """Undo it. Nothing happens where it isn't connected."""
    signal.disconnect(method, dispatch_uid=_name_of(method))


def _name_of(method: Any) -> tuple[str, int, str]:
    return "celery-etcdlock", id(method.__self__), method.__name__
