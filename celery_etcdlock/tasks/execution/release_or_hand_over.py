"""What becomes of a lock when its task ends: release it, leave it to the next delivery, or keep it for a while.

A retry and a replacement are published before the run that asks for them ends. A lock that is held until the task has
been executed doesn't end with that run: its key is marked as handed over, and nobody renews it. The run that it is
marked for takes it over, and no copy of another. If that run has other arguments, and so another lock, it is released.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Retry

from celery_etcdlock.core.conflict_decision import Place
from celery_etcdlock.core.record import KeyKind
from celery_etcdlock.interruptions import interrupts
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.tasks.entry.caller import Call
from celery_etcdlock.tasks.execution.context import ExecutionContext
from celery_etcdlock.tasks.execution.redelivery import Redelivery
from celery_etcdlock.tasks.message.due_time import message_seconds, seconds_until

#: Where ``SingletonTask.replace`` leaves the signature on the request.
REPLACEMENT = "_etcdlock_replacement"


def release_or_hand_over(
    context: ExecutionContext, lock: Lock, ended_by: BaseException | None, redelivery: Redelivery
) -> None:
    """Release ``lock``, or leave it to the next delivery of a run that ended with ``ended_by``.

    The done mark, if ``redelivery`` has one to put, is put with it or before. Raises no error of the store.
    """
    manager, options = context.manager, context.options
    successor = _successor(context.call, ended_by) if options.lifetime.hand_over else None
    if successor is not None and _is_for(context.task, successor, lock):
        delay = (seconds_until(ended_by.when) or 0.0) if isinstance(ended_by, Retry) else 0.0
        stands_for = message_seconds(options.pending_ttl, delay, successor.options.get("expires", context.task.expires))
        # The run that the signature makes: what Celery will say of it in the request.
        step = int(successor.options.get("retries") or 0), int(successor.options.get("replaced_task_nesting") or 0)
        redelivery.put_mark()
        manager.keep(lock, replace(lock.record, kind=KeyKind.HANDOVER, successor=step), stands_for)
        return
    remaining = options.lock_at_least_for - (lock.session.now() - lock.acquired_at)
    if options.lock_at_least_for and remaining > 0 and redelivery.entered:
        redelivery.put_mark()
        manager.keep(lock, replace(lock.record, kind=KeyKind.LEAST_HOLD), remaining)
        return
    if lock.doubtful:
        redelivery.put_mark()  # a release that resolves a doubt carries none
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
