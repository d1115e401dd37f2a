"""Handles a message that its broker delivers twice: the copy runs only if the first died.

Brokers redeliver when a visibility timeout runs out, a connection or channel is lost, or a worker dies, and don't
always say so. The lock keeps the copies apart while the first runs (``core.conflict_decision``). When the lock is free,
either the first has ended and left a mark (``locking.done_marks``), or it died and left none: then the copy runs.

*The end* of a delivery is what Celery acknowledges it for: a result, a failure (unless the task says otherwise:
``ACKS_ON_FAILURE``), a retry or replacement that was published. Not a process that dies, a time limit that kills it, a
``Reject``, or a body that was interrupted because its lock was lost.

Copies may have been rescheduled a different number of times, so a mark leaves that out: whichever runs first, the
others don't run.

A message that was published without us doesn't name its call, so its copy looks like another call under its task id.
There, marks are for ``acks_late`` tasks and for messages that the broker marks as redelivered.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from celery import Task
from celery.exceptions import Ignore, Reject, Retry

from celery_etcdlock.core.conflict_decision import Place
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.errors import LockLost, LockUnavailable
from celery_etcdlock.tasks.execution.context import ExecutionContext
from celery_etcdlock.tasks.execution.lost_result import await_or_replace, keeps_result, without_result
from celery_etcdlock.tasks.message.headers import COPY_HEADER, header

logger = logging.getLogger("celery_etcdlock")

#: The task's attribute by which this Celery decides whether a failure is acknowledged: from 5.7 on, one of its own.
ACKS_ON_FAILURE = "acks_on_failure" if hasattr(Task, "acks_on_failure") else "acks_on_failure_or_timeout"


class HasRun(Ignore):
    """Ends a copy whose first has come to its end: acknowledged, and the result is the first's."""


class StillRuns(Ignore):
    """Ends a copy that was sent back to its queue: the result and its state are the first's."""


def is_requeued(rejected: Reject) -> bool:
    """Whether its broker gives the message again. Celery's own ``retry`` says no when it can't publish."""
    return bool(getattr(rejected, "requeue", True))


class Redelivery:
    """One delivery, as far as there may be copies of it."""

    def __init__(self, context: ExecutionContext) -> None:
        self._context = context
        self._run = context.call.delivery.run
        self._keeps_result = context.call.place is Place.WORKER and keeps_result(context)
        self._marks = context.manager.done
        #: Set before the body is entered.
        self.entered = False
        #: The run to be marked as ended, if it is to be and isn't yet.
        self.unwritten_mark: Delivery | None = None
        self._mark_is_put = False

    @property
    def _has_copies(self) -> bool:
        """Whether there may be copies of the message, and they can be told from another call's."""
        call = self._context.call
        if call.place is not Place.WORKER:
            return False
        marks_all = call.delivery.call is not None or self._context.once or self._context.task.acks_late
        return marks_all or self.is_known_copy

    @property
    def is_known_copy(self) -> bool:
        """Whether its broker says that it was delivered before, or we found it to be a copy."""
        call, request = self._context.call, self._context.call.request
        if call.place is not Place.WORKER:
            return False
        delivery_info = request.delivery_info if isinstance(request.delivery_info, dict) else {}
        return bool(delivery_info.get("redelivered") or header(request, COPY_HEADER))

    def check_has_run(self, has_run: bool | None) -> None:
        """Raises ``HasRun``, or ``LockUnavailable``. ``has_run`` is what the store said already, if it did."""
        if not self._has_copies:
            return
        if has_run or self._run in self._marks.pending or (has_run is None and self._marks.seen(self._run)):
            logger.info("Task %s has run already: this is a redelivered copy", self._context.label)
            with suppress(LockUnavailable):
                if self._keeps_result and not self._marks.seen(without_result(self._run)):
                    await_or_replace(self._context)
            raise HasRun("has run already")

    def ended(self, error: BaseException | None) -> None:
        """Call it at the end, with what ended the run, while the lock is still held. Raises no error of the store."""
        is_due = self._has_copies and self._is_end(error) and not self._mark_is_put
        self.unwritten_mark = self._run if is_due else None
        if is_due and self._keeps_result and isinstance(error, Retry | Ignore):
            self._marks.pending.add(self._run)  # from now on: the second may take its time
            self._marks.put_in_the_end(without_result(self._run))

    def mark_is_put(self) -> None:
        """It is put, or will be before another run gets the lock."""
        self._mark_is_put = True
        self.unwritten_mark = None

    def put_mark(self) -> None:
        """Put a due mark: now, or when etcd answers again, before the release. Raises no error of the store."""
        if self.unwritten_mark is not None:
            self._marks.put_in_the_end(self.unwritten_mark)
            self.mark_is_put()

    def _is_end(self, error: BaseException | None) -> bool:
        if not self.entered or isinstance(error, Reject | LockLost):
            return False
        if error is None or isinstance(error, Ignore | Retry):
            return True
        return isinstance(error, Exception) and bool(getattr(self._context.task, ACKS_ON_FAILURE))
