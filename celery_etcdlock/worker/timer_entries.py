"""A parked message's entry in the worker's timer: found, and cancelled.

Since 5.7 Celery keeps it with the message. Before, it is looked for where ``inspect scheduled`` looks.
"""

from __future__ import annotations

from typing import Any

import kombu
from celery.worker.request import Request

__all__ = ["HUB_IS_WOKEN", "cancel", "timer_entry"]

CELERY_KEEPS_ENTRIES = hasattr(Request, "_eta_timer_entry")

#: Whether a thread that has the hub call something wakes it too. kombu before 5.7 does it when the hub turns next.
HUB_IS_WOKEN = kombu.VERSION >= (5, 7)  # type: ignore[attr-defined]  # not in its types


def timer_entry(consumer: Any, request: Any) -> Any:
    """The entry that lets ``request`` go on when its time has come; ``None`` where there is none yet, or any more."""
    entry = getattr(request, "_eta_timer_entry", None)
    if entry is not None or CELERY_KEEPS_ENTRIES:
        return entry
    for waiting in list(consumer.timer.schedule.queue):
        arguments = waiting.entry.args
        if arguments and arguments[0] is request and not waiting.entry.canceled:
            # gevent's timer has greenlets, which are cancelled themselves.
            return waiting if hasattr(waiting, "cancel") else waiting.entry
    return None


def cancel(consumer: Any, request: Any) -> None:
    entry = timer_entry(consumer, request)
    if entry is not None:
        request._eta_timer_entry = None
        consumer.timer.cancel(entry)
