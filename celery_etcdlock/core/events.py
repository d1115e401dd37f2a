"""What happens to locks, as frozen values, and who may listen.

Each event has the lock's ``name`` and a ``record`` of the delivery that it happened to: task, task id, host, process.
Times are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

from celery_etcdlock.core.record import Record


@dataclass(frozen=True, slots=True)
class LockAcquired:
    """``waited_seconds``: from the first request to the store until the lock was ours."""

    name: str
    record: Record
    fencing_token: int
    waited_seconds: float


@dataclass(frozen=True, slots=True)
class LockReleased:
    """The holder let go. Each hold ends either with this or with ``LockWasLost``, if its process lives to tell."""

    name: str
    record: Record
    fencing_token: int
    held_seconds: float


@dataclass(frozen=True, slots=True)
class LockConflicted:
    """Somebody else holds the lock. What the task does about it is its policy's: this needn't be its end."""

    name: str
    record: Record
    holder: Record | None


@dataclass(frozen=True, slots=True)
class LockWaiting:
    """A place in line was taken behind ``holder``."""

    name: str
    record: Record
    holder: Record | None


@dataclass(frozen=True, slots=True)
class LockWasLost:
    name: str
    record: Record
    fencing_token: int
    reason: str


@dataclass(frozen=True, slots=True)
class TaskDeduplicated:
    """A task ended without having run, because of its lock. ``reason`` is what its result says.

    ``joined``: the id of the task whose result it took on; ``None`` if it was skipped.
    """

    name: str
    record: Record
    reason: str
    joined: str | None = None


@dataclass(frozen=True, slots=True)
class TickSent:
    """The beat at work sent a due task. ``record`` is its own, with the task's name and id."""

    name: str
    record: Record
    entry: str
    late_seconds: float


@dataclass(frozen=True, slots=True)
class BeatTookOver:
    """A beat is at work now. ``takeovers``: how often the work has changed hands before."""

    name: str
    record: Record
    fencing_token: int
    takeovers: int


LockEvent = (
    LockAcquired
    | LockReleased
    | LockConflicted
    | LockWaiting
    | LockWasLost
    | TaskDeduplicated
    | TickSent
    | BeatTookOver
)


def facts_of(event: LockEvent) -> dict[str, Any]:
    """What the event says beside its name and record, by the names of its fields."""
    return {field.name: getattr(event, field.name) for field in fields(event) if field.name not in ("name", "record")}


class Listener(Protocol):
    """Told of every event in the thread where it happens: the task's, or for a loss also the renewal's.

    It must return soon. What it raises is logged and changes nothing for the lock.
    """

    def __call__(self, event: LockEvent, /) -> None: ...
