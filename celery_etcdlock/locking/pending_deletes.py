"""Deletes that are still due: releases that got no answer, tokens in doubt, keys of messages that ended.

Those of a session that is renewed are done after its renewal. ``PendingCleanup`` has all others: on leases that aren't
renewed (claims and queue positions), and of keys that a message brought along. They are tried once a second until the
store answers, and for a moment at the end of the process. Marks that a run has ended come before all of them
(``done_marks``), for whoever gets a lock that is released must find them.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from celery_etcdlock.core.protocol import DropEnded, Ended, GiveBack, Machine, ReleaseKey, Resolve, Unavailable
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.core.replies import StoreReply
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.done_marks import DoneMarks
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.session import PendingDelete, Session

logger = logging.getLogger("celery_etcdlock")

#: How many are done at a time, so that nothing else waits long.
DELETES_AT_A_TIME = 20


@dataclass(frozen=True, slots=True)
class EndedRun:
    """What stood under ``name`` for this run of a message, which has ended, must go; or only its queue position."""

    name: str
    delivery: Delivery
    position_only: bool = False


class HasPendingDeletes(Protocol):
    """A session, or ``Releases``."""

    @property
    def lease(self) -> int: ...

    def pending_deletes(self) -> Sequence[PendingDelete | EndedRun]: ...

    def settle(self, pending: Any) -> object: ...

    def observe(self, reply: StoreReply) -> None: ...


class Releases:
    """Pending deletes on no session of this process: keys that were put for messages."""

    lease = 0

    def __init__(self) -> None:
        self._pending_deletes: OrderedDict[PendingDelete | EndedRun, None] = OrderedDict()

    def schedule_delete(self, pending: PendingDelete | EndedRun) -> None:
        """A ``PendingDelete`` names the revision that it releases."""
        assert isinstance(pending, EndedRun) or pending.mod_revision is not None
        self._pending_deletes[pending] = None

    def pending_deletes(self) -> list[PendingDelete | EndedRun]:
        return list(self._pending_deletes)

    def settle(self, pending: PendingDelete | EndedRun) -> None:
        self._pending_deletes.pop(pending, None)

    def put_last(self, pending: PendingDelete | EndedRun) -> None:
        with suppress(KeyError):  # settled meanwhile
            self._pending_deletes.move_to_end(pending)

    def observe(self, reply: StoreReply) -> None:
        """Nothing to learn without a session."""


class PendingCleanup:
    """See the module. ``marks`` puts the marks."""

    def __init__(self, clock: Clock, marks: DoneMarks) -> None:
        self._clock = clock
        self._marks = marks
        self.releases = Releases()
        self._unrenewed: dict[int, Session] = {}

    def adopt(self, session: Session) -> None:
        """Do the pending deletes of a session whose lease isn't renewed."""
        self._unrenewed[session.lease] = session

    def put_marks(self, timeout_seconds: float) -> bool:
        """Put the marks that are pending. Returns whether none is left."""
        for delivery in self._marks.pending:
            try:
                self._marks.put(delivery, timeout_seconds)
            except LockUnavailable as error:
                if not error.permanent:
                    return False
                logger.warning(
                    "celery-etcdlock: task %s can't be marked as ended, so a copy of its message would run again: %s",
                    delivery.task_id,
                    error,
                )
            self._marks.pending.discard(delivery)
        return True

    def due(self) -> list[HasPendingDeletes]:
        """What has pending deletes now."""
        for lease, session in self._unrenewed.copy().items():
            if session.next_delete_due() is None:
                self._unrenewed.pop(lease, None)
                if session.next_delete_due() is not None:  # since a moment
                    self._unrenewed[lease] = session
        sources: list[HasPendingDeletes] = [*self._unrenewed.copy().values(), self.releases]
        return [source for source in sources if source.pending_deletes()]

    def flush_at_the_end(self, store: LockStore, seconds: float) -> None:
        """Do what can be done in so many seconds. The rest stands until its time is over."""
        deadline = self._clock() + seconds
        # Each once: what an earlier run of its message is in the way of stays so.
        for _ in range(0, self._keys_left(), DELETES_AT_A_TIME):
            if not all(flush(source, store, self._clock, deadline) for source in self.due()):
                break
        if keys_left := self._keys_left():
            logger.warning("celery-etcdlock: %d keys of this process stay in etcd until their time is over", keys_left)

    def _keys_left(self) -> int:
        return sum(len(source.pending_deletes()) for source in self.due())


def flush(
    source: HasPendingDeletes,
    store: LockStore,
    clock: Clock,
    answer_by: float,
    sleep: Callable[[float], object] = time.sleep,
) -> bool:
    """Do some of them; false when the store couldn't be brought to it by ``answer_by``."""
    for pending in source.pending_deletes()[:DELETES_AT_A_TIME]:
        for machine in _machines(pending, source.lease, answer_by):
            outcome = drive(machine, store, clock, observe=source.observe, sleep=sleep)
            if isinstance(outcome, Unavailable):
                return False
        if isinstance(outcome, Ended) and outcome.look_again:
            assert isinstance(source, Releases)
            source.put_last(pending)  # so that those behind it have their turn
        else:
            source.settle(pending)
    return True


def _machines(pending: PendingDelete | EndedRun, lease: int, answer_by: float) -> Iterator[Machine[object]]:
    """What does it, one after the other."""
    name = pending.name
    if isinstance(pending, EndedRun):
        yield DropEnded(name=name, delivery=pending.delivery, deadline=answer_by, position_only=pending.position_only)
        return
    if pending.replaces is not None:
        yield GiveBack(task_id=pending.replaces, deadline=answer_by)
    if pending.mod_revision is not None:
        yield ReleaseKey(name=name, token=pending.token, mod_revision=pending.mod_revision, deadline=answer_by)
    else:
        yield Resolve(lease=lease, name=name, token=pending.token, deadline=answer_by, attempt=pending.attempt)
