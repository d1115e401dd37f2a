"""Frees what a message's call took, where the message comes to its end in front of its lock.

A hook that raises (``before_start``), a tracer of somebody else's, a result backend that is away: the run never asks
for its lock, so nothing of ``tasks.execution`` frees it. Celery tells of each message that it has traced
(``task_postrun``), whatever ended it. One that comes again, as a retry or given back to its broker, keeps what it has.
"""

from __future__ import annotations

import sys
from typing import Any

from celery import states
from celery.exceptions import Reject
from celery.signals import task_postrun

from celery_etcdlock.tasks.call import entered
from celery_etcdlock.tasks.headers import claims_in, line_in
from celery_etcdlock.tasks.leaving import REPLACEMENT
from celery_etcdlock.tasks.runtime import EtcdLocks

__all__ = ["free_at_the_end"]


def free_at_the_end() -> None:
    """From now on, of each message that is traced here."""
    task_postrun.connect(_free, weak=False)


def _free(task: Any = None, state: str | None = None, retval: Any = None, **_: Any) -> None:
    plan = getattr(type(task), "_lock_plan", None)
    if plan is None:
        return
    request = task.request_stack.top
    if request is None or request.is_eager or entered(request) or _comes_again(request, state, retval):
        return
    line = line_in(request)
    claims = () if plan.options.lifetime.name == "until_expired" else claims_in(request)
    for claim in claims if line is None else (*claims, line):
        EtcdLocks.from_app(task.app).manager.drop_in_the_end(claim)


def _comes_again(request: Any, state: str | None, retval: Any) -> bool:
    if state is None:
        # Something goes through Celery's tracer: what it makes of an Exception is a failure, else the process ends.
        return not isinstance(sys.exc_info()[1], Exception)
    if state == states.REJECTED:
        return not isinstance(retval, Reject) or bool(getattr(retval, "requeue", True))
    return state == states.RETRY or (state == states.IGNORED and hasattr(request, REPLACEMENT))
