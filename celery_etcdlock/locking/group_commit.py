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
whose time is up without a word counts as dead, and whoever is queued takes over.

*Struck.* A signal's exception may end any caller between any two bytecodes. All that it owes to others is on its entry
(whom it took along, the answers that they wait for, who leads next), and ``_finish`` gives it to them on every way out:
it goes by what is left to do, so it is said twice, one ``finally`` around the other, for one of them may be struck
itself. A wake-up too many does no harm, and a mutex that a strike left locked is unlocked there, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Any

from celery_etcdlock.core import operations as ops
from celery_etcdlock.core.replies import StoreReply
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.lock_store import GroupingStore
from celery_etcdlock.native import allocate_owned_mutex, unlock

GROUPABLE = (ops.TryAcquire, ops.Enqueue, ops.Promote, ops.Release)

#: How long after a leader's deadline it counts as dead, in seconds.
GRACE_SECONDS = 1.0


class State(Enum):
    QUEUED = "queued"
    LEADING = "leading"
    TAKEN = "taken"
    ANSWERED = "answered"
    REFUSED = "refused"


@dataclass(slots=True, eq=False)
class Entry:
    """One caller's operation."""

    operation: ops.PlaceOperation
    deadline: float
    state: State = State.QUEUED
    outcome: StoreReply | LockUnavailable | None = None
    taken_by: Entry | None = None
    #: Locked until something happened. Of the flavour that the process uses: greenlets wait on it, too.
    wake: Any = field(default_factory=lambda: _locked(threading.Lock()))
    # A leader's:
    taken: list[Entry] = field(default_factory=list)
    sent: bool = False
    answers: list[StoreReply] | None = None
    refused: LockUnavailable | None = None
    successor: Entry | None = None
    finished: bool = False


class GroupCommit:
    """A ``LockStore`` that shares the transactions of another one between its callers."""

    def __init__(self, store: GroupingStore, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._monotonic = monotonic
        self._mutex = allocate_owned_mutex()  # held for moments only
        self._queue: dict[str, Entry] = {}  # by lock name, in order of arrival
        self._leader: Entry | None = None

    def perform(self, operation: ops.StoreOperation, timeout_seconds: float) -> StoreReply:
        if not isinstance(operation, GROUPABLE):
            return self._store.perform(operation, timeout_seconds)
        entry = Entry(operation, self._monotonic() + timeout_seconds)
        try:
            try:
                self._line_up(entry)
                while True:
                    if entry.state is State.LEADING:
                        return self._lead(entry)
                    if entry.state is State.REFUSED:
                        return self._alone(entry)
                    if entry.state is State.ANSWERED:
                        return _reply(entry)
                    self._wait(entry)
            finally:
                self._finish(entry)
        finally:
            # Once more: a signal may have struck in the first.
            self._finish(entry)

    def _line_up(self, entry: Entry) -> None:
        with self._mutex:
            if self._leader is None:
                self._leader = entry
                entry.state = State.LEADING
            elif entry.operation.name in self._queue:
                entry.state = State.REFUSED
            else:
                self._queue[entry.operation.name] = entry

    def close(self) -> None:
        self._store.close()

    # --- a leader's way ---------------------------------------------------------------------------------------

    def _lead(self, entry: Entry) -> StoreReply:
        self._take_along(entry)
        if not entry.taken:
            return self._alone(entry)
        operations = [one.operation for one in (entry, *entry.taken)]
        try:
            entry.sent = True
            entry.answers = self._store.perform_together(operations, self._seconds_left(entry))
        except LockUnavailable as error:
            entry.refused = error
            if error.maybe_applied:
                raise
            # Refused as a whole, maybe for one member's sake: each of them finds out alone.
            self._finish(entry)
            return self._alone(entry)
        return entry.answers[0]

    def _take_along(self, leader: Entry) -> None:
        with self._mutex:
            # The leader's own name may have been queued anew since it left the queue.
            others = (one for name, one in self._queue.items() if name != leader.operation.name)
            for one in list(islice(others, self._store.most_together - 1)):
                leader.taken.append(one)
                one.taken_by = leader
                one.state = State.TAKEN
                del self._queue[one.operation.name]

    # --- either's way out -------------------------------------------------------------------------------------

    def _finish(self, entry: Entry) -> None:
        """No longer lead or queue, and give others what they wait for. Goes on where an earlier one was cut off."""
        if entry.finished or (entry.state is State.ANSWERED and not entry.taken):
            return  # it is in no queue, leads nobody, and owes nobody an answer
        with self._mutex:
            if self._queue.get(entry.operation.name) is entry:
                del self._queue[entry.operation.name]
            for one in entry.taken:
                if one.taken_by is entry and self._queue.get(one.operation.name) is one:
                    del self._queue[one.operation.name]
            if self._leader is entry:
                entry.successor = next(iter(self._queue.values()), None)
                self._leader = entry.successor
            following = entry.successor
            if following is not None and following is self._leader and following.state is State.QUEUED:
                self._queue.pop(following.operation.name, None)
                following.state = State.LEADING
        unlock(self._mutex)
        if following is not None:
            _wake(following)  # the next call sets out while this one's answers are given out
        for number, one in enumerate(entry.taken):
            if one.taken_by is entry:
                if one.state is not State.ANSWERED and one.state is not State.REFUSED:
                    outcome = _outcome_for_others(entry, number + 1)
                    one.outcome = outcome
                    one.state = State.REFUSED if outcome is None else State.ANSWERED
                _wake(one)
        entry.finished = True

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
                        self._leader = entry
                        entry.state = State.LEADING
                        self._queue.pop(entry.operation.name, None)
                    return
                raise LockUnavailable("no answer from the lock store in time: its last call isn't over yet")
            if entry.state is State.TAKEN and now >= entry.deadline:
                raise LockUnavailable("no answer from the lock store in time", maybe_applied=True)

    def _alone(self, entry: Entry) -> StoreReply:
        return self._store.perform(entry.operation, self._seconds_left(entry))

    def _seconds_left(self, entry: Entry) -> float:
        return max(0.001, entry.deadline - self._monotonic())


def _locked(lock: Any) -> Any:
    lock.acquire()
    return lock


def _wake(entry: Entry) -> None:
    try:
        entry.wake.release()
    except RuntimeError:  # it is awake
        return


def _outcome_for_others(leader: Entry, number: int) -> StoreReply | LockUnavailable | None:
    """What a leader's call means for one who was taken along; ``None``: try it alone."""
    if leader.answers is not None:
        return leader.answers[number]
    if leader.refused is not None:
        error = leader.refused
        return LockUnavailable(str(error), maybe_applied=True) if error.maybe_applied else None
    if leader.sent:
        return LockUnavailable("the call that this one shared was interrupted", maybe_applied=True)
    return None


def _reply(entry: Entry) -> StoreReply:
    if isinstance(entry.outcome, LockUnavailable):
        raise entry.outcome
    assert entry.outcome is not None
    return entry.outcome
