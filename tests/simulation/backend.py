"""The result backend: Celery's own code for states, over one dict that all processes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.backends.base import KeyValueStoreBackend

__all__ = ["Results", "SimBackend"]


class Results:
    """What is stored, and who wants to know."""

    def __init__(self, sleep: Callable[[float], None], latency: Callable[[], float]) -> None:
        self.stored: dict[str, Any] = {}
        self._sleep = sleep
        self._latency = latency
        self.on_store: Callable[[str, Any], None] = lambda task_id, meta: None

    def travel(self) -> None:
        self._sleep(self._latency())


class SimBackend(KeyValueStoreBackend):
    """See the module. ``results`` is set by each run."""

    persistent = True
    results: Results

    def get(self, key: Any) -> Any:
        self.results.travel()
        return self.results.stored.get(_text(key))

    def set(self, key: Any, value: Any) -> None:
        self.results.travel()
        self._store(_text(key), value)

    def _set_with_state(self, key: Any, value: Any, state: str) -> None:
        self.set(key, value)

    def _store(self, key: str, value: Any) -> None:
        self.results.stored[key] = value
        if key.startswith("celery-task-meta-"):
            self.results.on_store(key.removeprefix("celery-task-meta-"), self.decode(value))

    def mget(self, keys: Any) -> Any:
        self.results.travel()
        return [self.results.stored.get(_text(key)) for key in keys]

    def delete(self, key: Any) -> None:
        self.results.stored.pop(_text(key), None)

    def incr(self, key: Any) -> int:
        self.results.travel()
        value = int(self.results.stored.get(_text(key), 0)) + 1
        self.results.stored[_text(key)] = value
        return value

    def expire(self, key: Any, value: Any) -> None:
        pass

    def on_task_call(self, producer: Any, task_id: str) -> None:
        pass


def _text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)
