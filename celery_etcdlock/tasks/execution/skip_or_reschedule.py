"""The ways out for a task that doesn't run now: skipped, or sent back to its queue."""

from __future__ import annotations

import logging
import time
from typing import Any, NoReturn

from celery import states
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError

from celery_etcdlock.core.conflict_decision import Place, Reschedule
from celery_etcdlock.core.events import TaskDeduplicated
from celery_etcdlock.errors import EtcdLockError, LockConflict
from celery_etcdlock.interruptions import interrupts
from celery_etcdlock.tasks.execution.context import ExecutionContext
from celery_etcdlock.tasks.execution.redelivery import StillRuns
from celery_etcdlock.tasks.execution.retry_state import has_result, retry_is_stored, store_retry
from celery_etcdlock.tasks.message import headers as message_headers
from celery_etcdlock.tasks.message.broker_delay import with_delay
from celery_etcdlock.tasks.message.due_time import in_iso_format, seconds_until

logger = logging.getLogger("celery_etcdlock")


#: A message isn't rescheduled for less than so many seconds before it expires.
EXPIRY_SECONDS = 1.0

#: RabbitMQ writes them on messages that it delayed. With them, it would take the next delay for a cycle, and drop it.
DEATH_HEADERS = ("x-death", "x-first-death-", "x-last-death-")


class Skipped(Ignore):
    """Ends a task that was skipped: its result is stored already, and says REVOKED."""


def skip(context: ExecutionContext, name: str, reason: str) -> NoReturn:
    """Don't run. The result is REVOKED and says why; so are those of the links behind it in a chain.

    A skipped run must look like neither a success nor a result that is still to come.
    """
    task, call = context.task, context.call
    reason = f"not run: {reason}"
    logger.info("Task %s %s", context.label, reason)
    stores_eager_result = call.place is Place.EAGER and bool(getattr(task, "store_eager_result", False))
    if call.place is Place.WORKER or stores_eager_result:
        # Like a revoke, this calls no link_error. Unlike a revoke, it ends the chain and the chord too.
        task.backend.mark_as_failure(
            call.delivery.task_id,
            TaskRevokedError(reason),
            request=call.request,
            store_result=not call.request.ignore_result,
            call_errbacks=False,
            state=states.REVOKED,
        )
    if call.place is Place.WORKER:
        context.manager.tell(TaskDeduplicated(name, context.locks.record(call.delivery, task.name), reason))
    raise Skipped(reason)


def reschedule(
    context: ExecutionContext,
    decision: Reschedule,
    why: EtcdLockError,
    *,
    is_copy: bool = False,
    may_be_copy: bool = False,
) -> NoReturn:
    """Publish the message again, under its own id and with its own retries, with a delay; then end this run.

    The new message is published before the old one is acknowledged. If we die in between there are two copies, which
    the lock keeps apart, and never none. The message takes along what it has. A redelivered copy leaves the result
    alone: it is the first's.

    A message that would expire before its delay is over ends here: its worker would discard it, and this run's result
    would overwrite its own. Not a copy, for the first may be dead and have no result: it comes back without Celery's
    ``expires`` and with an end of ours, which counts when it has the lock (``tasks.execution.run_under_lock``).
    """
    task, call = context.task, context.call
    request = call.request
    left = seconds_until(request.expires)
    keeps_own_end = left is not None and (is_copy or may_be_copy)
    seconds = decision.seconds if left is None or keeps_own_end else min(decision.seconds, left - EXPIRY_SECONDS)
    if seconds < 0:
        skip(context, why.name if isinstance(why, LockConflict) else "", f"it expired while it waited: {why}")
    headers = {name: value for name, value in (request.headers or {}).items() if not name.startswith(DEATH_HEADERS)}
    if not message_headers.are_for(headers, call.delivery.task_id):
        headers = message_headers.without_ours(headers)  # of another's message, which must not stand beside its own
    headers |= {
        message_headers.RESCHEDULES_HEADER: decision.comebacks,
        message_headers.RETRIES_HEADER: call.delivery.retries,
        message_headers.WAITING_SINCE_HEADER: time.time() if call.waiting_since is None else call.waiting_since,
        message_headers.WAITED_HEADER: [round(call.waited, 3), round(seconds, 3)],
    }
    if is_copy:
        headers[message_headers.COPY_HEADER] = True
    position = call.position
    what_it_has = {
        message_headers.CLAIMS_HEADER: [message_headers.written_claim(claim) for claim in call.claims],
        message_headers.POSITION_HEADER: None if position is None else message_headers.written_claim(position),
        message_headers.WAITS_FOR_HEADER: why.name if isinstance(why, LockConflict) else None,
        message_headers.JOIN_HEADER: None if call.joins is None else call.joins.written(),
        message_headers.EXPIRES_HEADER: in_iso_format(request.expires, left or 0.0) if keeps_own_end else None,
    }
    for name, value in what_it_has.items():
        headers.pop(name, None)
        if value:
            headers[name] = value
    signature = task.signature_from_request(
        request,
        request.args,
        request.kwargs,
        retries=call.delivery.retries,
        headers=headers,
        **({"expires": None} if keeps_own_end else {}),
        **with_delay(task.app, request.delivery_info, seconds),
    )
    is_copy = is_copy or has_result(context)  # Celery would store RETRY over a failure, for good
    when: Any = seconds  # celery-types wants a numbers.Real
    retry = Retry(str(why), exc=why, when=when)
    stored = not is_copy and store_retry(context, retry)
    try:
        signature.apply_async()
    except Exception as error:
        logger.exception("Task %s can't be sent back to its queue", context.label)
        if task.acks_late:
            # It isn't acknowledged yet, so the broker can deliver it again.
            raise Reject(str(error), requeue=True) from error
        if interrupts(error):
            raise
        raise why from error
    if is_copy:
        logger.info("Task %s is a redelivered copy and waits: %s", context.label, why)
        raise StillRuns(str(why))
    if stored:
        retry_is_stored(context)
    raise retry
