"""Stores that a run is retried before its retry can store how it ended.

Celery stores RETRY after the run, when the retry is in its queue already. In between we release a lock, which takes
seconds while etcd is away. A retry that is revoked or expires in that time stores REVOKED; RETRY, stored over it, would
stay for ever. So RETRY is stored as soon as the retry is known of, and Celery is kept from storing it once more: it
asks the request, from version 5.7. With older versions a result that is there by the end of the run is left alone; what
is left is the moment between the look and Celery's own store, which a retry without a lock has too.
"""

from __future__ import annotations

import traceback
from typing import Any

from celery import states
from celery.app import task as celery_task
from celery.exceptions import Retry

from celery_etcdlock.interruptions import interrupts
from celery_etcdlock.tasks.execution.context import ExecutionContext

#: From 5.7: whether a result is to be stored, by the request first and then by the task.
_ignores_result = getattr(celery_task, "get_actual_ignore_result", None)


def ignores_result(context: ExecutionContext) -> bool:
    """Whether Celery, of the version that is here, stores no result of the task."""
    task, request = context.task, context.call.request
    if _ignores_result is not None:
        return bool(_ignores_result(task, request))
    return bool(request.ignore_result or task.ignore_result)


def has_result(context: ExecutionContext) -> bool:
    """Whether the message has come to its end: by another delivery of it, or by its retry."""
    task, call = context.task, context.call
    try:
        return not ignores_result(context) and task.backend.get_state(call.delivery.task_id) in states.READY_STATES
    except Exception as error:
        if interrupts(error):
            raise
        return False  # a backend that keeps no results, or is away


def store_retry(context: ExecutionContext, retry: Retry) -> bool:
    """Store RETRY now. Returns whether that was done; if so, ``retry_is_stored`` is to follow."""
    task, call = context.task, context.call
    if _ignores_result is None or ignores_result(context) or task.store_errors_even_if_ignored:
        return False
    reason: Any = retry.exc  # as Celery does; celery-types wants an exception
    trace = "".join(traceback.format_exception(reason if isinstance(reason, BaseException) else retry))
    try:
        task.backend.mark_as_retry(call.delivery.task_id, reason, trace, request=call.request)
    except Exception as error:
        if interrupts(error):
            raise
        return False  # Celery tries it once more, and says what is wrong
    return True


def retry_is_stored(context: ExecutionContext) -> None:
    """Keep Celery from storing RETRY again. Only when the retry is in its queue: a failure to send it is a result."""
    context.call.request.ignore_result = True
