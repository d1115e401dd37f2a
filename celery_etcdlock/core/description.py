"""Who holds a lock, or waits for it, in words: the same ones in commands, errors, results, logs and on the page."""

from __future__ import annotations

from celery_etcdlock.core.printable import printable
from celery_etcdlock.core.record import DIRECT_PREFIX, STANDALONE_PREFIX, KeyKind, Record

UNREADABLE = "something that isn't celery-etcdlock, or is a newer version of it"

#: What a key that no process renews is, behind the task that put it.
_STANDS_FOR = {
    KeyKind.HELD: "",
    KeyKind.CLAIM: ", queued, published",
    KeyKind.POSITION: ", waiting in its queue, last seen",
    KeyKind.HANDOVER: ", its next run is queued, the last one was",
    KeyKind.LEAST_HOLD: ", ended, lock_at_least_for isn't over, it ran",
    KeyKind.WINDOW: ", unique_for isn't over, published",
}


def holder_kind(record: Record) -> str:
    """``task``: a message's; ``call``: of a task called as a function; ``process``: of a lock without a task."""
    task_id = record.delivery.task_id
    if task_id.startswith(STANDALONE_PREFIX):
        return "process"
    return "call" if task_id.startswith(DIRECT_PREFIX) else "task"


def what_it_is_about(record: Record) -> str:
    """The task's name with its retry and the arguments that make its key; without a task, its note or name."""
    retries = record.delivery.retries
    parts = (record.task, f"retry {retries}" if retries else "", record.about or "")
    return printable(", ".join(part for part in parts if part))


def in_words(record: Record | None) -> str:
    """One line without a time: ``task 3787f72f (proj.sync, account_id=7) on vm, pid 7404``."""
    if record is None:
        return UNREADABLE
    what, host = what_it_is_about(record), printable(record.host)
    match holder_kind(record):
        case "process":
            return f"pid {record.pid} ({what}) on {host}"
        case "call":
            return f"{what}, called as a function, on {host}, pid {record.pid}"
    return f"task {printable(record.delivery.task_id)} ({what}){_STANDS_FOR[record.kind]} on {host}, pid {record.pid}"
