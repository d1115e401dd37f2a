"""Group commit: what the threads of a process ask for at the same time travels in one transaction.

A lock costs the store two commits, and a commit costs about the same with one operation in it as with fifty. So one
call at a time is under way. Whoever finds none under way becomes the *leader* and calls at once, alone: a lone caller
waits for nothing, and there is no timer. Those who come meanwhile queue, and when the call is over the first of them
becomes the leader and takes the rest along (DeWitt et al., Implementation Techniques for Main Memory Database Systems,
SIGMOD 1984).

States of an entry::

    QUEUED --> LEADING                     chosen when the leader's call was over: it takes along what is queued
    QUEUED --> TAKEN ----> ANSWERED        its reply, or the error of the whole call
                     ----> REFUSED         the call failed without an effect, maybe for another's sake: go alone

*Rules.* No lock name is in a transaction twice: comparisons in a transaction see the state before it (rule 4). An
operation on a name that is queued already goes alone, at once.

*Deadlines* are each caller's own. A call is given its leader's time; one who wants more time than that learns that
there was no answer, and asks again. One whose time is over while it is queued never asked; once taken, it may have.

*Failure.* An answer that got lost is lost for everybody who was taken along, and each resolves its own token. A leader
that is interrupted hands over on its way out. Should even that be cut off (a signal's exception between two steps),
whoever is queued takes over when the leader's time is up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum
from itertools import islice

from celery_etcdlock.core.operations import (
    Enqueue,
    PlaceOperation,
    Promote,
    Release,
    StoreOperation,
    TryAcquire,
)
from celery_etcdlock.core.replies import StoreReply
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.store import GroupingStore
from celery_etcdlock.native import allocate_mutex

__all__ = ["GroupCommit"]

GROUPABLE = (TryAcquire, Enqueue, Promote, Release)

#: How long after a leader's deadline it counts as dead, in seconds.
GRACE_SECONDS = 1.0


class State(Enum):
    QUEUED = "queued"
    LEADING = "leading"
    TAKEN = "taken"
    ANSWERED = "answered"
    REFUSED = "refused"


class Entry:
    """One caller's operation. ``wake`` is a lock of the flavour that the process uses: greenlets wait on it, too."""

    __slots__ = ("deadline", "operation", "outcome", "state", "wake")

    def __init__(self, operation: PlaceOperation, deadline: float) -> None:
        self.operation = operation
        self.deadline = deadline
        self.state = State.QUEUED
        self.outcome: StoreReply | LockUnavailable | None = None
        self.wake = threading.Lock()
        self.wake.acquire()


class GroupCommit:
    """A ``LockStore`` that shares the transactions of another one between its callers."""

    def __init__(self, store: GroupingStore, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._monotonic = monotonic
        self._mutex = allocate_mutex()  # held for moments only
        self._queue: dict[str, Entry] = {}  # by lock name, in order of arrival
        self._leader: Entry | None = None

    def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        if not isinstance(operation, GROUPABLE):
            return self._store.perform(operation, timeout_seconds)
        entry = Entry(operation, self._monotonic() + timeout_seconds)
        with self._mutex:
            if self._leader is None:
                self._leader = entry
                entry.state = State.LEADING
            elif operation.name in self._queue:
                entry.state = State.REFUSED
            else:
                self._queue[operation.name] = entry
        try:
            while True:
                if entry.state is State.LEADING:
                    return self._lead(entry)
                if entry.state is State.REFUSED:
                    return self._alone(entry)
                if entry.state is State.ANSWERED:
                    return _reply(entry)
                self._wait(entry)
        finally:
            self._leave(entry)

    def close(self) -> None:
        self._store.close()

    # --- a leader's way ---------------------------------------------------------------------------------------

    def _lead(self, entry: Entry) -> StoreReply:
        taken = self._take_along(entry)
        if not taken:
            return self._alone(entry)
        try:
            operations = [one.operation for one in (entry, *taken)]
            replies = self._store.perform_together(operations, self._seconds_left(entry))
        except BaseException as error:
            self._settle(taken, [_error_for_others(error)] * len(taken))
            if not isinstance(error, LockUnavailable) or error.maybe_applied:
                raise
            # Refused as a whole, maybe for one member's sake: each of them finds out alone.
            self._leave(entry)
            return self._alone(entry)
        self._leave(entry)  # the next call sets out while this one's answers are told
        self._settle(taken, replies[1:])
        return replies[0]

    def _take_along(self, leader: Entry) -> list[Entry]:
        with self._mutex:
            # The leader's own name may have been queued anew since it left the queue.
            others = (one for name, one in self._queue.items() if name != leader.operation.name)
            taken = list(islice(others, self._store.most_together - 1))
            for one in taken:
                one.state = State.TAKEN
                del self._queue[one.operation.name]
            return taken

    def _settle(self, taken: list[Entry], outcomes: list[StoreReply] | list[LockUnavailable | None]) -> None:
        for one, outcome in zip(taken, outcomes, strict=True):
            one.outcome = outcome
            one.state = State.REFUSED if outcome is None else State.ANSWERED
            one.wake.release()

    def _leave(self, entry: Entry) -> None:
        """No longer lead or queue; the first in the queue leads next."""
        with self._mutex:
            if self._queue.get(entry.operation.name) is entry:
                del self._queue[entry.operation.name]
            if self._leader is not entry:
                return
            following = self._leader = next(iter(self._queue.values()), None)
            if following is not None:
                del self._queue[following.operation.name]
                following.state = State.LEADING
        if following is not None:
            following.wake.release()

    # --- a follower's way -------------------------------------------------------------------------------------

    def _wait(self, entry: Entry) -> None:
        """Until something happened to the entry; raises LockUnavailable at its deadline."""
        leader = self._leader
        until = entry.deadline if leader is None else min(entry.deadline, leader.deadline + GRACE_SECONDS)
        if entry.wake.acquire(timeout=max(0.0, until - self._monotonic())):
            return
        now = self._monotonic()
        with self._mutex:
            if entry.state is State.QUEUED:
                if now < entry.deadline:
                    leader = self._leader
                    if leader is None or now >= leader.deadline + GRACE_SECONDS:
                        del self._queue[entry.operation.name]
                        self._leader = entry
                        entry.state = State.LEADING
                    return
                raise LockUnavailable("no answer from the lock store in time: its last call isn't over yet")
            if entry.state is State.TAKEN and now >= entry.deadline:
                raise LockUnavailable("no answer from the lock store in time", maybe_applied=True)

    # --- either ------------------------------------------------------------------------------------------------

    def _alone(self, entry: Entry) -> StoreReply:
        return self._store.perform(entry.operation, self._seconds_left(entry))

    def _seconds_left(self, entry: Entry) -> float:
        return max(0.001, entry.deadline - self._monotonic())


def _error_for_others(error: BaseException) -> LockUnavailable | None:
    """What a failed call means for those who were taken along; ``None``: try it alone."""
    if not isinstance(error, LockUnavailable):
        return LockUnavailable("the call that this one shared was interrupted", maybe_applied=True)
    return LockUnavailable(str(error), maybe_applied=True) if error.maybe_applied else None


def _reply(entry: Entry) -> StoreReply:
    if isinstance(entry.outcome, LockUnavailable):
        raise entry.outcome
    assert entry.outcome is not None
    return entry.outcome
