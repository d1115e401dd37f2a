"""What happens to locks, as frozen values, and who may listen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Listener", "LockAcquired", "LockConflicted", "LockEvent", "LockReleased", "LockWasLost"]


@dataclass(frozen=True, slots=True)
class LockAcquired:
    name: str
    fencing_token: int


@dataclass(frozen=True, slots=True)
class LockReleased:
    """``was_held`` is false when the key was gone already: the lease had ended or somebody deleted it."""

    name: str
    fencing_token: int
    was_held: bool


@dataclass(frozen=True, slots=True)
class LockConflicted:
    name: str
    holder: str


@dataclass(frozen=True, slots=True)
class LockWasLost:
    name: str
    fencing_token: int
    reason: str


LockEvent = LockAcquired | LockReleased | LockConflicted | LockWasLost


class Listener(Protocol):
    """Told of every event in the thread where it happens: the task's, or for a loss also the renewal's.

    It must return soon. What it raises is logged and changes nothing for the lock.
    """

    def __call__(self, event: LockEvent, /) -> None: ...
