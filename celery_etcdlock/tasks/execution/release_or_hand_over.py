"""Letting go of a lock when its task ends: release it, leave it to the next delivery, or let it stand for a while.

A retry and a replacement are published before the run that asks for them ends. Of a lock that is held until the task
has been executed, the end of that run isn't the end: the key is marked as handed over and stands, without renewal,
until the run that it is marked for takes it over, and no copy of another. If that one has other arguments, and so
another lock, this one is free.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Retry

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.core.conflict_decision import Place
from celery_etcdlock.core.record import KeyKind, Step
from celery_etcdlock.interruptions import interrupts
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.tasks.definition.lock_plan import LockPlan
from celery_etcdlock.tasks.entry.caller import Call
from celery_etcdlock.tasks.execution.redelivery import Redelivery
from celery_etcdlock.tasks.message.due_time import seconds_until

#: Seconds that a lock stands for a message that has been due since.
PENDING_SECONDS = 3600.0

#: Where ``SingletonTask.replace`` leaves the signature on the request.
REPLACEMENT = "_etcdlock_replacement"


def release_or_hand_over(
    task: Task[Any, Any],
    plan: LockPlan,
    call: Call,
    lock: Lock,
    ended_by: BaseException | None,
    redelivery: Redelivery,
) -> None:
    """Let go of ``lock``, held by a run that ended with ``ended_by``. Never raises for the store's sake.

    The mark that the run has ended, if ``redelivery`` owes one, is put with it or before.
    """
    manager = EtcdLocks.from_app(task.app).manager
    options = plan.options
    successor = _successor(call, ended_by) if options.lifetime.hand_over else None
    if successor is not None and _is_for(task, successor, lock):
        delay = (seconds_until(ended_by.when) or 0.0) if isinstance(ended_by, Retry) else 0.0
        stands_for = delay + (options.pending_ttl or PENDING_SECONDS)
        step = _step(successor)
        redelivery.put_mark()
        manager.keep(lock, replace(lock.record, kind=KeyKind.HANDOVER, successor=step), stands_for)
        return
    remaining = options.lock_at_least_for - (lock.session.now() - lock.acquired_at)
    if options.lock_at_least_for and remaining > 0:
        redelivery.put_mark()
        manager.keep(lock, replace(lock.record, kind=KeyKind.LEAST_HOLD), remaining)
        return
    if lock.doubtful:
        redelivery.put_mark()  # what resolves a doubt carries none
    if manager.release(lock, redelivery.unwritten_mark):
        redelivery.mark_is_put()
    else:
        redelivery.put_mark()


def _successor(call: Call, ended_by: BaseException | None) -> Any:
    """The signature that goes on under the same task id, if there is one."""
    if call.place is not Place.WORKER:
        return None
    if isinstance(ended_by, Retry):
        return getattr(ended_by, "sig", None)
    return getattr(call.request, REPLACEMENT, None) if isinstance(ended_by, Ignore) else None


def _step(successor: Any) -> Step:
    """Which run the signature makes: what Celery will say of it in the request."""
    options = successor.options
    return int(options.get("retries") or 0), int(options.get("replaced_task_nesting") or 0)


def _is_for(task: Task[Any, Any], successor: Any, lock: Lock) -> bool:
    if successor.task != task.name:
        return False
    try:
        names = task._lock_names(tuple(successor.args), dict(successor.kwargs))  # type: ignore[attr-defined]
    except Exception as error:
        if interrupts(error):
            raise
        return False
    return lock.name in names
