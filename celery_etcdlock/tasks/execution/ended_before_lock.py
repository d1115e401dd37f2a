"""Frees what a message's call took, where the message comes to its end in front of its lock.

A hook that raises (``before_start``), a tracer of somebody else's, a result backend that is away, a time limit on the
way to it: the run never asks for its lock, so nothing of ``tasks.execution.run_under_lock`` frees it. Celery tells of
each message that it has traced (``task_postrun``), whatever ended it. One that comes again, as a retry or given back to
its broker, keeps what it has.
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
    delivery = delivery_of(request)
    for name in _names(task, request):
        EtcdLocks.from_app(task.app).manager.drop_ended(name, delivery)


def _names(task: Any, request: Any) -> list[str]:
    """Under which something may stand for the message: as it says itself, and by its arguments."""
    position = position_in(request)
    names = {claim.name for claim in (*claims_in(request), *([] if position is None else [position]))}
    lifetime = task._lock_plan.options.lifetime
    if lifetime.at_enqueue:
        try:
            args, kwargs = tuple(request.args or ()), dict(request.kwargs or {})
            made = task._lock_names(args, kwargs, request.headers or {})
        except (EtcdLockError, TypeError, ValueError):
            made = ()  # its arguments make no key, so no lock was taken for it
        names.update(made, (lifetime.queued_name(name) for name in made))
    return sorted(names)


def _comes_again(request: Any, state: str | None, retval: Any) -> bool:
    if state is None:
        # Something goes through Celery's tracer: what it makes of an Exception is a failure, else the process ends.
        return not isinstance(sys.exc_info()[1], Exception)
    if state == states.REJECTED:
        return not isinstance(retval, Reject) or bool(getattr(retval, "requeue", True))
    return state == states.RETRY or (state == states.IGNORED and hasattr(request, REPLACEMENT))
