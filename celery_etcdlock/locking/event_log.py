"""The log of lock events: each line with its facts as fields of the log record too, for structured logs.

Fields: ``lock_event``, ``lock_name``, ``lock_about`` (the arguments that make the key, where they may be shown),
``task_id``, ``task_name``, ``fencing_token``, ``lock_holder`` (a task id),
``waited_seconds``, ``held_seconds``, ``late_seconds``. A loss is an error, a takeover is information; the rest, which
happens with every task, is for debugging.
"""

from __future__ import annotations

import logging

from celery_etcdlock.core import events as lock_events
from celery_etcdlock.core.description import in_words
from celery_etcdlock.core.printable import printable

logger = logging.getLogger("celery_etcdlock")

#: Of the others it is DEBUG.
LEVELS: dict[type[lock_events.LockEvent], int] = {
    lock_events.LockWasLost: logging.ERROR,
    lock_events.BeatTookOver: logging.INFO,
}

#: Facts that are fields as they are.
FIGURES = ("fencing_token", "waited_seconds", "held_seconds", "late_seconds")


def log_event(event: lock_events.LockEvent) -> None:
    """A ``Listener``."""
    if not logger.isEnabledFor(LEVELS.get(type(event), logging.DEBUG)):
        return  # as mostly, twice for each lock
    match event:
        case lock_events.LockWasLost():
            message = "celery-etcdlock: lock %s (fencing token %s) is lost: %s"
            _log("lost", event, message, event.fencing_token, event.reason)
        case lock_events.BeatTookOver():
            message = "celery-etcdlock: lock %s: this beat is at work (fencing token %s, %s takeovers before)"
            _log("beat", event, message, event.fencing_token, event.takeovers)
        case lock_events.LockAcquired():
            _log("acquired", event, "lock %s acquired (fencing token %s)", event.fencing_token)
        case lock_events.LockReleased():
            _log("released", event, "lock %s released (fencing token %s)", event.fencing_token)
        case lock_events.LockConflicted():
            _log("conflict", event, "lock %s is held by %s", in_words(event.holder))
        case lock_events.LockWaiting():
            _log("waiting", event, "lock %s is waited for behind %s", in_words(event.holder))
        case lock_events.TaskDeduplicated():
            _log("deduplicated", event, "lock %s: a task ended without having run: %s", event.reason)
        case lock_events.TickSent():
            message = "lock %s: the tick of %r was sent, %.3f s late"
            _log("tick", event, message, event.entry, event.late_seconds)


def _log(kind: str, event: lock_events.LockEvent, message: str, *arguments: object) -> None:
    record = event.record
    fields = {"lock_event": kind, "lock_name": event.name, "task_id": record.delivery.task_id, "task_name": record.task}
    named = repr(event.name)
    if record.about is not None:
        fields["lock_about"] = record.about
        named += f" ({printable(record.about)})"
    for fact, value in lock_events.facts_of(event).items():
        if fact in FIGURES:
            fields[fact] = value
        elif fact == "holder":
            fields["lock_holder"] = "an unknown holder" if value is None else value.delivery.task_id
    logger.log(LEVELS.get(type(event), logging.DEBUG), message, named, *arguments, extra=fields)
