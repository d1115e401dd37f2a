"""Steps of a worker that hear of Celery's signals, for as long as the worker runs.

Before 5.7, Celery takes one method of two objects for the same receiver and keeps only the first: of two workers in a
process the second would hear nothing. So each is connected under a name of its own. And a worker that has stopped in a
process that goes on (as in tests) must hear nothing of the next one.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps


class ListeningStep(bootsteps.StartStopStep):
    """A step of the worker, or of its consumer."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._connected: list[tuple[Any, Any]] = []

    def connect(self, signal: Any, method: Any) -> None:
        """Have ``method`` called, and this step kept, until ``disconnect``."""
        signal.connect(method, weak=False, dispatch_uid=_name_of(method))
        self._connected.append((signal, method))

    def disconnect(self) -> None:
        for signal, method in self._connected:
            signal.disconnect(method, dispatch_uid=_name_of(method))
        self._connected.clear()

    def shutdown(self, parent: Any) -> None:
        """The worker stops; a consumer's ``stop`` also comes when a connection is lost."""
        self.disconnect()


def _name_of(method: Any) -> tuple[str, int, str]:
    return "celery-etcdlock", id(method.__self__), method.__name__
