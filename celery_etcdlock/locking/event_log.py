"""The log of lock events: each line with its facts as fields of the log record too, for structured logs.

Fields: ``lock_event``, ``lock_name``, ``lock_about`` (the arguments that make the key, where they may be shown),
``task_id``, ``task_name``, ``fencing_token``, ``lock_holder`` (a task id),
``waited_seconds``, ``held_seconds``, ``late_seconds``. A loss is an error, a takeover is information; the rest, which
happens with every task, is for debugging.
"""

from __future__ import annotations

import logging
from typing import Any

from celery_etcdlock.core import events as lock_events
from celery_etcdlock.core.description import in_words
from celery_etcdlock.core.printable import printable
from celery_etcdlock.core.record import Record

logger = logging.getLogger("celery_etcdlock")


def log_event(event: lock_events.LockEvent) -> None:
    """A ``Listener``."""
    match event:
        case lock_events.LockWasLost():
            message = "celery-etcdlock: lock %s (fencing token %s) is lost: %s"
            _log(logging.ERROR, "lost", event, message, event.fencing_token, event.reason)
        case lock_events.BeatTookOver():
            message = "celery-etcdlock: lock %s: this beat is at work (fencing token %s, %s takeovers before)"
            _log(logging.INFO, "beat", event, message, event.fencing_token, event.takeovers)
        case _ if not logger.isEnabledFor(logging.DEBUG):
            return
        case lock_events.LockAcquired():
            message, waited = "lock %s acquired (fencing token %s)", event.waited_seconds
            _log(logging.DEBUG, "acquired", event, message, event.fencing_token, waited_seconds=waited)
        case lock_events.LockReleased():
            message, held = "lock %s released (fencing token %s)", event.held_seconds
            _log(logging.DEBUG, "released", event, message, event.fencing_token, held_seconds=held)
        case lock_events.LockConflicted():
            _log(logging.DEBUG, "conflict", event, "lock %s is held by %s", in_words(event.holder))
        case lock_events.LockWaiting():
            _log(logging.DEBUG, "waiting", event, "lock %s is waited for behind %s", in_words(event.holder))
        case lock_events.TaskDeduplicated():
            _log(logging.DEBUG, "deduplicated", event, "lock %s: a task ended without having run: %s", event.reason)
        case lock_events.TickSent():
            message, late = "lock %s: the tick of %r was sent, %.3f s late", event.late_seconds
            _log(logging.DEBUG, "tick", event, message, event.entry, late, late_seconds=late)


def _log(level: int, kind: str, event: lock_events.LockEvent, message: str, *arguments: object, **more: Any) -> None:
    fields = {
        "lock_event": kind,
        "lock_name": event.name,
        "task_id": event.record.delivery.task_id,
        "task_name": event.record.task,
        **more,
    }
    named = repr(event.name)
    if event.record.about is not None:
        fields["lock_about"] = event.record.about
        named += f" ({printable(event.record.about)})"
    if isinstance(
        event, lock_events.LockAcquired | lock_events.LockReleased | lock_events.LockWasLost | lock_events.BeatTookOver
    ):
        fields["fencing_token"] = event.fencing_token
    if isinstance(event, lock_events.LockConflicted | lock_events.LockWaiting):
        fields["lock_holder"] = _task_id(event.holder)
    logger.log(level, message, named, *arguments, extra=fields)


def _task_id(holder: Record | None) -> str:
    return "an unknown holder" if holder is None else holder.delivery.task_id
