"""What a run does that can't have its lock: what ``core.conflict_decision`` decides, done."""

from __future__ import annotations

import random

from celery import states

from celery_etcdlock.app.etcd_locks import warn_of_another_broker
from celery_etcdlock.core.conflict_decision import (
    PREDECESSOR_SECONDS,
    Reschedule,
    Situation,
    Verdict,
    on_conflict,
    on_unavailable,
)
from celery_etcdlock.core.events import LockWaiting
from celery_etcdlock.core.policy_choice import policy_of
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.lock_holder import conflict_error
from celery_etcdlock.locking.outcomes import Conflict
from celery_etcdlock.tasks.execution.context import MESSAGE_PREFIX, ExecutionContext
from celery_etcdlock.tasks.execution.join import GONE_SECONDS, await_result, take_result
from celery_etcdlock.tasks.execution.queue_position import leave_queue, take_position
from celery_etcdlock.tasks.execution.redelivery import Redelivery
from celery_etcdlock.tasks.execution.skip_or_reschedule import reschedule, skip
from celery_etcdlock.tasks.message.headers import Duplicate

jitter = random.Random()


def meet_conflict(
    context: ExecutionContext, redelivery: Redelivery, conflict: Conflict, *, waited_for_predecessor: bool
) -> None:
    """Returns when the run is to try again; else raises what ends it."""
    call = context.call
    related_key, related = context.related_key(conflict) or (None, None)
    is_ours = conflict.name.startswith(MESSAGE_PREFIX) and conflict.name not in context.names()
    if is_ours and related is None:
        raise LockUnavailable(f"lock {conflict.name!r} is held by a key that this version can't read")
    context.locks.circuit_breaker.over()
    # Whoever holds the lock: a copy of what has run has nothing to wait for, and mustn't touch the result.
    redelivery.check_has_run(conflict.has_run)
    warn_of_another_broker(conflict, context.record)
    error = conflict_error(conflict)
    in_chord_header = call.request is not None and bool(call.request.chord)
    policy = policy_of(
        context.options, context.locks.settings, error, at_enqueue=False, in_chord_header=in_chord_header
    )
    situation = Situation(
        call.place,
        policy,
        call.delivery,
        related,
        waited_for_predecessor,
        waited=call.waited,
        wait_timeout=context.options.wait_timeout,
    )
    decision = on_conflict(situation, jitter)
    if decision is Verdict.WAIT_FOR_PREDECESSOR:
        if related_key is not None:
            context.manager.claims.await_change(related_key, conflict.name, PREDECESSOR_SECONDS)
        return
    if decision is Verdict.SKIP:
        skip(context, conflict.name, str(error))
    if isinstance(decision, Reschedule):
        if decision.facts.needs_result:
            # Without a task id there is nobody whose result could be awaited.
            call.joins = Duplicate.of("join", error) if error.task_id is not None else None
            if call.joins is not None:
                take_result(context, call.joins)
            # Who joins waits for a result, not for its turn: a position taken under another policy is given up.
            leave_queue(context)
        elif related is None:
            if not call.delivery.comebacks:
                context.manager.tell(LockWaiting(conflict.name, context.record, conflict.holder))
            if take_position(context, conflict, decision):
                return
        is_copy = related is not None and related.run == call.delivery.run
        reschedule(context, decision, error, is_copy=is_copy)
    leave_queue(context)
    raise error


def end_duplicate(context: ExecutionContext, duplicate: Duplicate) -> None:
    """Do to a duplicate what would have been done when it was published.

    One that joins returns when nothing is left of the run that it waits for: then it runs itself.
    """
    call = context.call
    if duplicate.policy == "skip":
        skip(context, duplicate.name, str(duplicate.conflict))
    if duplicate.policy != "join" or duplicate.task_id is None:
        raise duplicate.conflict
    state = take_result(context, duplicate)
    # A retry keeps its lock where its lifetime hands it over, so that a retry without a key is no more, either.
    has_key = state == states.RETRY and not context.lifetime.hand_over
    if not has_key and not still_runs(context, duplicate):
        # Its process may have died, its message never have been published, or been dropped by its broker.
        await_result(context, duplicate, GONE_SECONDS)
        return
    situation = Situation(
        call.place, "join", call.delivery, waited=call.waited, wait_timeout=context.options.wait_timeout
    )
    decision = on_conflict(situation, jitter)
    if isinstance(decision, Reschedule):
        reschedule(context, decision, duplicate.conflict)
    raise duplicate.conflict


def still_runs(context: ExecutionContext, joined: Duplicate) -> bool:
    """Whether a key is left of the task that is joined: of its message, its run, or what waits for its retry."""
    names = dict.fromkeys((joined.name, *context.names(), f"{MESSAGE_PREFIX}{joined.task_id}"))
    keys = (key for name in names for key in context.manager.keys(name))
    return any(key.record is not None and key.record.delivery.task_id == joined.task_id for key in keys)


def meet_outage(context: ExecutionContext, redelivery: Redelivery, error: LockUnavailable) -> None:
    """Nobody knows who holds the lock. Returns where the task is to run all the same; else raises."""
    call = context.call
    decision = on_unavailable(call.place, context.locks.settings.on_unavailable, call.delivery.comebacks, jitter)
    context.locks.circuit_breaker.tell(error)
    if decision is Verdict.RUN_UNPROTECTED:
        return
    # Of the public type: a result backend stores the class, and readers must be able to catch it.
    public = LockUnavailable(str(error), maybe_applied=error.maybe_applied, permanent=error.permanent)
    if isinstance(decision, Reschedule):
        reschedule(context, decision, public, may_be_copy=redelivery.is_known_copy)
    raise public from error
