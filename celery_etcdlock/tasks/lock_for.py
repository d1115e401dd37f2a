"""``lock_for(task, ...)``: the lock that a call of the task takes, also where ``etcdlock_dedup`` locks it."""

from __future__ import annotations

from typing import Any

from celery import Task

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.core.dedup_rules import rule_for
from celery_etcdlock.tasks.definition.lock_plan import plan_of
from celery_etcdlock.tasks.singleton_task import SingletonTask
from celery_etcdlock.tasks.task_classes import in_front_of
from celery_etcdlock.tasks.task_lock import TaskLock, by_message


def lock_for(task: Task[Any, Any], /, *args: Any, **kwargs: Any) -> TaskLock:
    """The lock that ``task`` takes when it is called with these arguments.

    As ``task.lock_for(...)``, also for a task that is locked by the setting ``etcdlock_dedup``, in any process. Raises
    ``TypeError`` for a task that takes no lock or doesn't take these arguments, ``InvalidKey`` where they make no key.
    """
    task = getattr(task, "_get_current_object", lambda: task)()  # of Celery's proxy
    if isinstance(task, SingletonTask):
        return task.lock_for(*args, **kwargs)
    if not isinstance(task, Task):
        raise TypeError(f"lock_for takes a task, not {task!r}")
    rule = rule_for(EtcdLocks.from_app(task.app).settings.dedup or (), task.name)
    if rule is None:
        raise TypeError(
            f"{task.name} takes no lock: it isn't a SingletonTask (@singleton_task or base=SingletonTask), and no "
            "pattern in etcdlock_dedup matches its name"
        )
    if rule.options is None:
        raise by_message(task.name)
    # As a worker makes it (``worker.apply_dedup``), without changing the task.
    locked = in_front_of(type(task), **rule.options)
    locked._lock_plan = plan_of(locked)
    copy = locked.__new__(locked)
    vars(copy).update(vars(task))
    return copy.lock_for(*args, **kwargs)
