"""OpenTelemetry spans of locks: ``etcdlock_listeners = ["opentelemetry"]``.

A span ``lock TASK`` for as long as a lock is held, with a span ``lock wait TASK`` before it if it was waited for, both
under whatever span is current where the lock is taken: the task's, with ``opentelemetry-instrumentation-celery``. A
loss ends the span as an error; a conflict and a task that ended without having run are events of the current span.
"""

from __future__ import annotations

import time
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode, TracerProvider

from celery_etcdlock.core import events as lock_events

#: Waits shorter than this, in seconds, are the acquire's own round trip and get no span.
LEAST_WAIT_SECONDS = 0.05


class OpenTelemetryListener:
    """Traces through ``provider``, by default the global one."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("celery_etcdlock", tracer_provider=provider)
        self._held: dict[tuple[str, int], trace.Span] = {}

    def __call__(self, event: lock_events.LockEvent, /) -> None:
        task = event.record.task
        match event:
            case lock_events.LockAcquired():
                attributes = _attributes(event) | {"etcdlock.fencing_token": event.fencing_token}
                now = time.time_ns()
                if event.waited_seconds >= LEAST_WAIT_SECONDS:
                    began = now - int(event.waited_seconds * 1e9)
                    self._tracer.start_span(f"lock wait {task}", attributes=attributes, start_time=began).end(now)
                span = self._tracer.start_span(f"lock {task}", attributes=attributes, start_time=now)
                self._held[event.name, event.fencing_token] = span
            case lock_events.LockReleased() | lock_events.LockWasLost():
                span = self._held.pop((event.name, event.fencing_token), trace.INVALID_SPAN)
                if isinstance(event, lock_events.LockWasLost):
                    span.set_status(Status(StatusCode.ERROR, f"the lock is lost: {event.reason}"))
                span.end()
            case lock_events.LockConflicted() | lock_events.LockWaiting():
                attributes = _attributes(event)
                if event.holder is not None:
                    attributes["etcdlock.holder"] = event.holder.delivery.task_id
                name = "etcdlock.conflict" if isinstance(event, lock_events.LockConflicted) else "etcdlock.waiting"
                trace.get_current_span().add_event(name, attributes)
            case lock_events.TaskDeduplicated():
                attributes = _attributes(event) | {"etcdlock.reason": event.reason}
                trace.get_current_span().add_event("etcdlock.deduplicated", attributes)


def _attributes(event: lock_events.LockEvent) -> dict[str, Any]:
    return {
        "etcdlock.name": event.name,
        "celery.task_name": event.record.task,
        "messaging.message.id": event.record.delivery.task_id,
    }


def listener() -> lock_events.Listener:
    return OpenTelemetryListener()
