"""What happens to locks, as frozen values, and who may listen.

Times are in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from celery_etcdlock.core.record import Record


@dataclass(frozen=True, slots=True)
class LockEvent:
    """``name`` is the lock's, ``record`` that of the delivery that it happened to: task, task id, host, process."""

    name: str
    record: Record


@dataclass(frozen=True, slots=True)
class LockAcquired(LockEvent):
    """``waited_seconds``: from the first request to the store until the lock was ours."""

    fencing_token: int
    waited_seconds: float


@dataclass(frozen=True, slots=True)
class LockReleased(LockEvent):
    """The holder released it. Each hold ends with this or with ``LockWasLost``, unless its process dies."""

    fencing_token: int
    held_seconds: float


@dataclass(frozen=True, slots=True)
class LockConflicted(LockEvent):
    """Somebody else holds the lock. The policy decides what the task does: this needn't be its end."""

    holder: Record | None


@dataclass(frozen=True, slots=True)
class LockWaiting(LockEvent):
    """A waiter queues behind ``holder``."""

    holder: Record | None


@dataclass(frozen=True, slots=True)
class LockWasLost(LockEvent):
    fencing_token: int
    reason: str


@dataclass(frozen=True, slots=True)
class TaskDeduplicated(LockEvent):
    """A task ended without a run: ``reason`` is in its result; ``joined``: the id of the task whose result it took."""

    reason: str
    joined: str | None = None


@dataclass(frozen=True, slots=True)
class TickSent(LockEvent):
    """The beat at work sent a due task. ``record`` is its own, with the task's name and id."""

    entry: str
    late_seconds: float


@dataclass(frozen=True, slots=True)
class BeatTookOver(LockEvent):
    """A beat is at work now. ``takeovers``: how often the work has changed hands before."""

    fencing_token: int
    takeovers: int


def facts_of(event: LockEvent) -> dict[str, Any]:
    """What the event says beside its name and record, by the names of its fields."""
    return {field.name: getattr(event, field.name) for field in fields(event) if field.name not in ("name", "record")}


#: Gets every event in the thread where it happens: the task's, or for a loss also the renewal's. It must return soon.
#: What it raises is logged and changes nothing for the lock.
Listener = Callable[[LockEvent], None]
