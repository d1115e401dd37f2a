"""What all machines have in common, outcomes that several share, and the pause between two tries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from celery_etcdlock.core.operations import Operation, Pause
from celery_etcdlock.core.replies import Reply
from celery_etcdlock.errors import LockUnavailable

Outcome = TypeVar("Outcome", covariant=True)


class Machine(ABC, Generic[Outcome]):
    """Emits operations, takes replies and the time, and ends with an outcome. See the package."""

    #: Until when the reply to the operation just emitted is worth waiting for.
    answer_by: float
    #: The number of the try that is under way.
    _tries = 1

    @abstractmethod
    def start(self, now: float) -> Operation: ...

    @abstractmethod
    def on(self, reply: Reply, now: float) -> Operation | Outcome: ...

    def stop_waiting(self, now: float) -> None:
        """Whoever it acquires for doesn't want to wait for others any more. May be told again and again."""

    def _try_again(
        self, error: LockUnavailable, now: float, *, doubtful: bool = False, give_up_at: float | None = None
    ) -> Pause | Unavailable | None:
        """What follows a failed try; ``None``: the same operation, at once. Tries until ``give_up_at``."""
        self._tries += 1
        if error.permanent or now >= (self.answer_by if give_up_at is None else give_up_at):
            return Unavailable(error, doubtful=doubtful)
        pause = pause_before_try(self._tries)
        return pause if pause.seconds else None


@dataclass(frozen=True, slots=True)
class SessionLost:
    """The session is gone and whatever hung on it: open another and begin anew."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The store gave no usable answer in time.

    ``doubtful``: a request of ours may still take effect, so the token must be resolved before it is forgotten.
    """

    error: LockUnavailable
    doubtful: bool = False


def pause_before_try(number: int) -> Pause:
    """The pause before try ``number`` (2 is the first repeat): none at first, then doubling from 50 ms to 1 s."""
    return Pause(0.0 if number <= 2 else min(0.05 * 2 ** min(number - 3, 10), 1.0))
