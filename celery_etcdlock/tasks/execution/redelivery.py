"""What a message does that its broker delivers twice: the copy runs if the first died, and else is done with.

Brokers deliver again when a visibility timeout runs out, a connection or a channel is lost, or a worker dies, and not
always say so. The lock keeps the copies apart while the first lives (``core.conflict_decision``). When the lock is
free, either the first has come to its end, and left a mark (``locking.done_marks``), or it died, and left none: then
the copy runs.

*The end* of a delivery is what Celery acknowledges it for: a result, a failure (unless ``acks_on_failure_or_timeout``
is off), a retry or replacement that was published. Not a process that ends half-way, a time limit that kills it, a
``Reject``, or a body that was interrupted because its lock was lost.

Copies may have come back to their queue a different number of times, so that is left out of what is marked: whichever
runs first, the others are done with.

A message that was published without us doesn't say for which call it stands, so a copy of it can't be told from another
call under its task id: there, marks are for ``acks_late`` tasks and messages that their broker says it delivers again.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject, Retry

from celery_etcdlock.core.conflict_decision import Place
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.errors import LockLost
from celery_etcdlock.locking.done_marks import DoneMarks
from celery_etcdlock.tasks.entry.caller import Call
from celery_etcdlock.tasks.message.headers import COPY_HEADER, header

logger = logging.getLogger("celery_etcdlock")


class HasRun(Ignore):
    """Ends a copy whose first has come to its end: acknowledged, and the result is the first's."""


class StillRuns(Ignore):
    """Ends a copy that was sent back to its queue: the result and its state are the first's."""


class Redelivery:
    """One delivery, as far as there may be copies of it. ``expected``: take it that there are."""

    def __init__(self, task: Task[Any, Any], call: Call, marks: DoneMarks, *, expected: bool = False) -> None:
        self._expected = expected
        self._task = task
        self._call = call
        self._marks = marks
        #: Whether the body was.
        self.entered = False
        self._owes_mark = False
        self._mark_is_put = False

    @property
    def _has_copies(self) -> bool:
        """Whether there may be copies of the message, and they can be told from another call's."""
        if self._call.place is not Place.WORKER:
            return False
        return self._call.delivery.call is not None or self._expected or self._task.acks_late or self.is_known_copy

    @property
    def is_known_copy(self) -> bool:
        """Whether its broker says that it was delivered before, or we found it to be a copy."""
        request = self._call.request
        if self._call.place is not Place.WORKER:
            return False
        delivery_info = request.delivery_info if isinstance(request.delivery_info, dict) else {}
        return bool(delivery_info.get("redelivered") or header(request, COPY_HEADER))

    def check(self, has_run: bool | None) -> None:
        """To be called with the lock held, before the body. Raises ``HasRun``, or ``LockUnavailable``.

        ``has_run`` is what the store said already, if it did: here and in the next.
        """
        self.check_has_run(has_run)
        self.entered = True

    def enter_unchecked(self) -> None:
        """The body is entered although that couldn't be asked."""
        self.entered = True

    def check_has_run(self, has_run: bool | None) -> None:
        """The same where the lock can't be had."""
        if not self._has_copies:
            return
        run = self._call.delivery.run
        if has_run or self._marks.is_owed(run) or (has_run is None and self._marks.seen(run)):
            delivery = self._call.delivery
            logger.info("Task %s[%s] has run already: this is a redelivered copy", self._task.name, delivery.task_id)
            raise HasRun("has run already")

    def ended(self, error: BaseException | None) -> None:
        """To be called at the end, with what ended it and while the lock is still held."""
        self._owes_mark = self._has_copies and self._is_end(error) and not self._mark_is_put

    @property
    def unwritten_mark(self) -> Delivery | None:
        """The run to be marked as ended, if it is to be and isn't yet."""
        return self._call.delivery.run if self._owes_mark else None

    def mark_is_put(self) -> None:
        """It is put, or will be before anybody else gets the lock."""
        self._mark_is_put = True
        self._owes_mark = False

    def put_mark(self) -> None:
        """Put the mark, if it isn't yet: now, or when etcd answers again, and then before what is to be released.

        Never raises for the store's sake.
        """
        if self._owes_mark:
            self._marks.put_in_the_end(self._call.delivery.run)
            self.mark_is_put()

    def _is_end(self, error: BaseException | None) -> bool:
        if not self.entered or isinstance(error, Reject | LockLost):
            return False
        if error is None or isinstance(error, Ignore | Retry):
            return True
        return isinstance(error, Exception) and bool(self._task.acks_on_failure_or_timeout)
