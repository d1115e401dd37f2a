"""What all machines have in common, outcomes that several share, and the pause between two tries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from celery_etcdlock.core.operations import Operation, Pause
from celery_etcdlock.core.record import Record
from celery_etcdlock.core.replies import Reply
from celery_etcdlock.errors import LockUnavailable

Outcome = TypeVar("Outcome", covariant=True)


@dataclass(kw_only=True, eq=False)
class Machine(ABC, Generic[Outcome]):
    """Emits operations, takes replies and the time, and ends with an outcome by ``deadline``. See the package."""

    deadline: float

    #: The number of the try that is under way.
    _tries = 1
    #: An unanswered try may still take effect.
    _doubtful = False
    #: What went wrong last.
    _error: LockUnavailable | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        #: Until when the reply to the operation just emitted is worth waiting for.
        self.answer_by = self.deadline

    def start(self, now: float) -> Operation:
        return self._send(now)

    @abstractmethod
    def _send(self, now: float) -> Operation:
        """The operation that is due, for the first time or once more."""

    @abstractmethod
    def on(self, reply: Reply, now: float) -> Operation | Outcome: ...

    def stop_waiting(self, now: float) -> None:
        """Whoever it acquires for doesn't want to wait for others any more. May be called again and again."""

    def _unavailable(self, *, doubtful: bool = False) -> Unavailable:
        return Unavailable(self._error or LockUnavailable("no answer from the lock store"), doubtful=doubtful)

    def _try_again(
        self, error: LockUnavailable, now: float, *, doubtful: bool = False, give_up_at: float | None = None
    ) -> Operation | Unavailable:
        """What follows a failed try: once more, until ``give_up_at``."""
        self._tries += 1
        if error.permanent or now >= (self.answer_by if give_up_at is None else give_up_at):
            return Unavailable(error, doubtful=doubtful)
        pause = pause_before_try(self._tries)
        return pause if pause.seconds else self._send(now)


@dataclass(kw_only=True, eq=False)
class KeyMachine(Machine[Outcome]):
    """Puts or rewrites one key of ours under the session's epoch. Failed operations are repeated until ``give_up_at``.

    All times are on the driver's clock.
    """

    lease: int
    epoch: int
    name: str
    token: str
    record: Record
    give_up_at: float


@dataclass(frozen=True, slots=True)
class SessionLost:
    """The session is gone and whatever hung on it: open another and begin anew."""

    reason: str


SESSION_GONE = SessionLost("its lease has ended or was revoked, or its key was deleted")


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No usable answer in time. ``doubtful``: a request of ours may still take effect: ``Resolve`` its token."""

    error: LockUnavailable
    doubtful: bool = False


def pause_before_try(number: int) -> Pause:
    """The pause before try ``number`` (2 is the first repeat): none at first, then doubling from 50 ms to 1 s."""
    return Pause(0.0 if number <= 2 else min(0.05 * 2 ** min(number - 3, 10), 1.0))
