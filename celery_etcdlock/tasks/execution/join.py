"""``join``: a duplicate takes the result of the run that it duplicates.

It waits for the *stored* result, since that is what others see. So a result backend that keeps results is needed. The
duplicate's own chain, chord and callbacks go on from the value, or from the error, as if it had run itself.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import states

from celery_etcdlock.core.events import TaskDeduplicated
from celery_etcdlock.tasks.execution.context import ExecutionContext
from celery_etcdlock.tasks.execution.skip_or_reschedule import skip
from celery_etcdlock.tasks.message.headers import Duplicate

logger = logging.getLogger("celery_etcdlock")

#: Seconds that a task waits in its slot for a result whose lock is free: it is stored just after the release.
RESULT_SECONDS = 1.0
#: The same where no key is left of the other run: the error of a killed child may be stored late.
GONE_SECONDS = 5.0


class Joined(BaseException):
    """Ends the taking of a lock: there is a result already, or an ``error``. Never leaves the package.

    The error isn't raised where the lock is taken: a ``LockUnavailable`` or a time limit that another run met isn't
    this run's, and must not be handled as such.
    """

    def __init__(self, result: Any = None, error: BaseException | None = None) -> None:
        super().__init__()
        self.result = result
        self.error = error


def take_result(context: ExecutionContext, joins: Duplicate) -> str:
    """Raise ``Joined`` with the value or the error, or ``Ignore`` as for a skipped task, as the joined run ended.

    Returns its state when it hasn't ended.
    """
    task, call, locks = context.task, context.call, context.locks
    meta = task.backend.get_task_meta(joins.task_id or "")
    state: str = meta["status"]
    if state not in states.READY_STATES:
        return state
    reason = f"joined, lock {joins.name!r} was held by {joins.holder}"
    logger.info("Task %s %s: %s", context.label, reason, state)
    if state == states.REVOKED:
        skip(context, joins.name, f"{reason}, which was revoked")
    context.manager.tell(TaskDeduplicated(joins.name, locks.record(call.delivery, task.name), reason, joins.task_id))
    result = meta["result"]
    if state == states.FAILURE:
        raise Joined(error=result if isinstance(result, BaseException) else joins.conflict)
    raise Joined(result)


def await_result(context: ExecutionContext, joins: Duplicate, seconds: float = RESULT_SECONDS) -> None:
    """As ``take_result``, for as long as a result may still be stored. Returns when there is none."""
    ends_at = time.monotonic() + seconds
    take_result(context, joins)
    while time.monotonic() < ends_at:
        time.sleep(0.05)
        take_result(context, joins)
    logger.warning(
        "Task %s joined %s, which released its lock without a result: it acquires the lock itself",
        context.label,
        joins.task_id,
    )
