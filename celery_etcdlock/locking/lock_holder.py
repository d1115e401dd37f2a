"""Who holds a lock, for people: in errors, results, logs, and as a value."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from celery_etcdlock.core.description import holder_kind, in_words
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.errors import LockConflict
from celery_etcdlock.locking.outcomes import Conflict


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who holds a lock. ``str()`` of it is one line.

    ``what`` is the task's name, or for a lock without a task its ``note``, else its name; ``task_id`` the task's id,
    ``None`` without one; ``since`` Unix time in seconds by the holder's clock; ``about`` the arguments that make the
    key, short and for people, where they may be shown. All but ``description`` are ``None`` when what is stored there
    can't be read.
    """

    description: str
    what: str | None = None
    task_id: str | None = None
    host: str | None = None
    pid: int | None = None
    since: float | None = None
    about: str | None = None

    def __str__(self) -> str:
        return self.description


def holder_of(keys: Sequence[Key]) -> LockHolder | None:
    """The first owner, of all keys under a lock's name; ``None`` when there is none."""
    if not keys:
        return None
    record = keys[0].record
    description = describe_holder(tuple(keys))
    if record is None:
        return LockHolder(description)
    return LockHolder(
        description,
        record.task,
        None if holder_kind(record) == "process" else record.delivery.task_id,
        record.host,
        record.pid,
        record.since,
        record.about,
    )


def conflict_error(conflict: Conflict) -> LockConflict:
    """The error that says who holds the lock."""
    holder = conflict.holder
    task_id = holder.delivery.task_id if holder is not None and holder.delivery.is_message else None
    return LockConflict(conflict.name, describe_holder(conflict.keys), task_id)


def describe_holder(keys: tuple[Key, ...]) -> str:
    """One line on who holds a lock, for results, errors and logs."""
    if not keys:
        return "somebody who released it meanwhile"
    record = keys[0].record
    since = "" if record is None else time.strftime(", since %Y-%m-%d %H:%M:%S UTC", time.gmtime(record.since))
    return in_words(record) + since
