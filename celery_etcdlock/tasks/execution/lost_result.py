"""What becomes of a task whose run came to its end, and whose worker died before Celery stored how.

The mark that a run has ended is put with the release of its lock, and Celery stores the result after that. In between a
worker may die, or cancel the task since it lost its broker. A copy of the message doesn't run then, and without a
result its caller would wait for ever. So the copy waits until nobody can be about to store one any more, and says in
its place what is known: it ran to its end, and how is lost.

A run that ends without a result of its own, as by a retry, leaves a second mark, before the first. Callbacks of errors
aren't called: somebody may have read the result and forgotten it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from celery import states
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.exceptions import WorkerLostError

from celery_etcdlock.core.record import Delivery
from celery_etcdlock.interruptions import interrupts
from celery_etcdlock.tasks.execution.context import ExecutionContext
from celery_etcdlock.tasks.execution.retry_state import ignores_result

logger = logging.getLogger("celery_etcdlock")

#: Besides two time-outs of etcd, which a release may take.
STORING_SECONDS = 1.0
LOOK_SECONDS = 0.1


def keeps_result(context: ExecutionContext) -> bool:
    kept_by_others = not isinstance(context.task.backend, DisabledBackend | RPCBackend)
    return kept_by_others and not ignores_result(context)


def without_result(run: Delivery) -> Delivery:
    """What is marked besides ``run`` if its end is no result: a run never has come back, so nothing else is so."""
    return replace(run, comebacks=1)


def await_or_replace(context: ExecutionContext) -> None:
    """Return when the result is there; at the latest when it can't come any more, with another in its place."""
    task, call = context.task, context.call
    try:
        ends_at = time.monotonic() + 2 * context.locks.settings.timeout + STORING_SECONDS
        while task.backend.get_state(call.delivery.task_id) not in states.READY_STATES:
            if time.monotonic() >= ends_at:
                break
            time.sleep(LOOK_SECONDS)
        else:
            return
        error = WorkerLostError(
            "it ran to its end, but its worker was lost before that was stored; it doesn't run again"
        )
        logger.error("Task %s has no result: %s", context.label, error)
        task.backend.mark_as_failure(call.delivery.task_id, error, request=call.request, call_errbacks=False)
    except Exception as failure:
        if interrupts(failure):
            raise
        logger.exception("The result of task %s can't be looked for", context.label)
