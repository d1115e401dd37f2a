"""Policies that this worker, its broker or its result backend can't carry out: an error at its start."""

from __future__ import annotations

from typing import Any

from celery import Celery, Task
from celery.exceptions import ImproperlyConfigured

from celery_etcdlock.core.policies import having
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.core.task_options import TaskOptions
from celery_etcdlock.tasks.message.broker_delay import has_quorum_queues


def policy_names(options: TaskOptions, settings: Settings) -> frozenset[str]:
    """The policies that a task has, as far as they are known beforehand."""
    by_setting = {settings.on_conflict} if options.on_conflict is None else set()
    return options.policies.names | by_setting


def check_at_worker(app: Celery, task: Task[Any, Any], options: TaskOptions, settings: Settings) -> None:
    """Raises ``ImproperlyConfigured``, which names the task and the remedy."""
    names = policy_names(options, settings)
    for name in having(names, lambda facts: facts.needs_result):
        _check_results_are_kept(app, task, name)
    in_order = having(names, lambda facts: facts.in_order)
    has_delays = app.conf.get("broker_native_delayed_delivery_queue_type") is not None or not has_quorum_queues(app)
    if in_order and not has_delays:
        raise ImproperlyConfigured(
            f"task {task.name!r}: on_conflict={in_order[0]!r} puts messages back with a "
            "delay, and without broker_native_delayed_delivery_queue_type (Celery 5.5) delayed messages of a quorum "
            "queue block its worker: use on_conflict='skip' or 'raise', a classic queue, or a newer Celery"
        )


def _check_results_are_kept(app: Celery, task: Task[Any, Any], policy: str) -> None:
    backend = type(task.backend).__name__
    if task.ignore_result or backend in ("DisabledBackend", "RPCBackend"):
        why = "ignore_result is set" if task.ignore_result else f"the result backend is {backend}"
        raise ImproperlyConfigured(
            f"task {task.name!r}: on_conflict={policy!r} needs the stored result of another run, but {why}: use a "
            "backend that keeps results (Redis, a database, memcached), or another policy"
        )
