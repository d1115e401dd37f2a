"""Connects methods of the worker's steps to Celery's signals, for as long as the worker runs.

Before 5.7, Celery takes one method of two objects for the same receiver and keeps only the first: of two workers in a
process the second would hear nothing. So each is connected under a name of its own. And a worker that has stopped in a
process that goes on (as in tests) must hear nothing of the next one.
"""

from __future__ import annotations

from typing import Any


class SignalReceivers:
    """The receivers of one step."""

    def __init__(self) -> None:
        self._connected: list[tuple[Any, Any]] = []

    def connect(self, signal: Any, method: Any) -> None:
        """Have ``method`` called, and its object kept, until ``disconnect``."""
        signal.connect(method, weak=False, dispatch_uid=_name_of(method))
        self._connected.append((signal, method))

    def disconnect(self) -> None:
        for signal, method in self._connected:
            signal.disconnect(method, dispatch_uid=_name_of(method))
        self._connected.clear()


def _name_of(method: Any) -> tuple[str, int, str]:
    return "celery-etcdlock", id(method.__self__), method.__name__
