"""Notices every message that ends in the worker's MainProcess without having started, and has its lock freed.

Celery has signals for some of these ends (``worker.free_never_started``), and none for others: a body that can't be
decoded, an ETA out of range, somebody else's strategy that discards. In all of them the message is acknowledged or
rejected before a pool has accepted its request. So the messages of locked tasks are watched.

A message whose process died right after it was accepted may not have reached its lock: Celery signals that.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.signals import task_failure, task_received

from celery_etcdlock.tasks.message.headers import CALL_HEADER
from celery_etcdlock.worker.listening_step import ListeningStep

#: Where a watched message knows its request.
REQUEST = "_etcdlock_request"


class WatchUnstarted(ListeningStep):
    """See the module. It prepares a message before the consumer's own handler gets it."""

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._worker = consumer.controller
        self._create = consumer.create_task_handler
        self._requests: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        consumer.create_task_handler = self._create_task_handler
        self.connect(task_received, self._on_received)
        self.connect(task_failure, self._on_failure)

    def _create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], Any]:
        handle = self._create(*args, **options)

        def on_task_received(message: Any) -> Any:
            headers = message.headers
            if isinstance(headers, dict) and CALL_HEADER in headers:
                self._watch(message)
            return handle(message)

        return on_task_received

    def _watch(self, message: Any) -> None:
        ack, reject = message.ack, message.reject

        def on_ack(*args: Any, **options: Any) -> Any:
            done = ack(*args, **options)
            self._ended(message)
            return done

        def on_reject(requeue: bool = False) -> Any:
            done = reject(requeue=requeue)
            if not requeue:
                self._ended(message)
            return done

        message.ack, message.reject = on_ack, on_reject
        setattr(message, REQUEST, None)

    def _on_received(self, request: Any = None, **_: Any) -> None:
        message = getattr(request, "message", None)
        if message is not None and REQUEST in getattr(message, "__dict__", ()):
            setattr(message, REQUEST, weakref.ref(request))
            self._requests[request.id] = request

    def _ended(self, message: Any) -> None:
        known = getattr(message, REQUEST)
        request = known() if known is not None else None
        if request is None:
            self._worker.etcdlock_never_started.free(message.headers)
        elif request.time_start is None:
            self._worker.etcdlock_never_started.free(request.request_dict, request.task)

    def _on_failure(self, task_id: str | None = None, exception: Any = None, **_: Any) -> None:
        request = self._requests.get(task_id) if task_id is not None else None
        if request is not None and isinstance(exception, TimeLimitExceeded | WorkerLostError):
            self._worker.etcdlock_never_started.free(request.request_dict, request.task)
