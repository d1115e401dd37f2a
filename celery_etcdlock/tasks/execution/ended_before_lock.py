"""Frees what a message's call took, where the message ends before its run asks for the lock.

That may be a hook that raises (``before_start``), somebody else's tracer, an unreachable result backend, or a time
limit. Then ``tasks.execution.run_under_lock`` frees nothing. Celery tells of each message that it has traced
(``task_postrun``), whatever ended it. One that comes again, as a retry or given back to its broker, keeps what it has.
"""

from __future__ import annotations

import sys
from typing import Any

from celery import states
from celery.exceptions import Reject
from celery.signals import task_postrun

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.errors import EtcdLockError
from celery_etcdlock.tasks.entry.caller import delivery_of, is_taken_charge_of
from celery_etcdlock.tasks.execution.redelivery import is_requeued
from celery_etcdlock.tasks.execution.release_or_hand_over import REPLACEMENT
from celery_etcdlock.tasks.message.headers import claims_in, position_in


def free_at_the_end() -> None:
    """From now on, of each message that is traced here."""
    task_postrun.connect(_free, weak=False)


def _free(task: Any = None, state: str | None = None, retval: Any = None, **_: Any) -> None:
    if getattr(task, "_lock_plan", None) is None:
        return
    request = task.request_stack.top
    if request is None or request.is_eager or is_taken_charge_of(request) or _comes_again(request, state, retval):
        return
    names = names_in_headers(request)
    if task._lock_plan.options.lifetime.at_enqueue:
        names |= names_by_arguments(task, request.args, request.kwargs, request.headers)
    delivery = delivery_of(request)
    for name in sorted(names):
        EtcdLocks.from_app(task.app).manager.drop_ended(name, delivery)


def names_in_headers(carrier: Any) -> set[str]:
    """The locks that a message's headers say it holds or waits for."""
    return {claim.name for claim in (*claims_in(carrier), position_in(carrier)) if claim is not None}


def names_by_arguments(task: Any, args: Any, kwargs: Any, headers: Any) -> set[str]:
    """The locks that a call with these arguments may have taken."""
    try:
        names = task._lock_names(tuple(args or ()), dict(kwargs or {}), headers or {})
    except (EtcdLockError, TypeError, ValueError):
        return set()  # its arguments make no key, so no lock was taken for it
    return {*names, *map(task._lock_plan.options.lifetime.queued_name, names)}


def _comes_again(request: Any, state: str | None, retval: Any) -> bool:
    if state is None:
        # Something goes through Celery's tracer: what it makes of an Exception is a failure, else the process ends.
        return not isinstance(sys.exc_info()[1], Exception)
    if state == states.REJECTED:
        return not isinstance(retval, Reject) or is_requeued(retval)
    return state == states.RETRY or (state == states.IGNORED and hasattr(request, REPLACEMENT))
