"""A waiting message's entry in the worker's timer: found, and cancelled.

Since 5.7 Celery keeps it with the message. Before, it is looked for where ``inspect scheduled`` looks.
"""

from __future__ import annotations

from typing import Any

import kombu
from celery.worker import state as worker_state
from celery.worker.request import Request

CELERY_KEEPS_ENTRIES = hasattr(Request, "_eta_timer_entry")

#: Whether a thread that has the hub call something wakes it too. kombu before 5.7 does it when the hub turns next.
HUB_IS_WOKEN = kombu.VERSION >= (5, 7)  # type: ignore[attr-defined]  # not in its types


def timer_entry(consumer: Any, request: Any) -> Any:
    """The entry that starts ``request`` when its time has come; ``None`` where there is none yet, or any more."""
    entry = getattr(request, "_eta_timer_entry", None)
    if entry is not None or CELERY_KEEPS_ENTRIES:
        return entry
    for waiting in list(consumer.timer.schedule.queue):
        arguments = waiting.entry.args
        if arguments and arguments[0] is request and not waiting.entry.canceled:
            # gevent's timer has greenlets, which are cancelled themselves.
            return waiting if hasattr(waiting, "cancel") else waiting.entry
    return None


def waiting_requests(timer: Any, task_id: str) -> list[Any]:
    """The requests of this task id that wait in the worker for their time, a retry beside the run before it."""
    found = {id(request): request for request in [worker_state.requests.get(task_id)] if request is not None}
    for waiting in list(timer.schedule.queue) if timer is not None else ():
        arguments = waiting.entry.args
        request = arguments[0] if arguments else None
        if isinstance(request, Request) and request.id == task_id and not waiting.entry.canceled:
            found[id(request)] = request
    return [request for request in found.values() if request not in worker_state.active_requests]


def cancel(consumer: Any, request: Any) -> None:
    entry = timer_entry(consumer, request)
    if entry is not None:
        request._eta_timer_entry = None
        consumer.timer.cancel(entry)
