"""A worker's start: finds wrong settings before the first task does.

Wrong are also policies that this worker, its broker or its result backend can't carry out.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, bootsteps
from celery.exceptions import ImproperlyConfigured

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.core.operations import Look
from celery_etcdlock.core.policies import having
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.core.task_options import TaskOptions
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.tasks.entry.coroutines import is_awaited_by
from celery_etcdlock.tasks.entry.seam import has_own_call
from celery_etcdlock.tasks.message.broker_delay import has_quorum_queues
from celery_etcdlock.tasks.singleton_task import SingletonTask, locked_tasks
from celery_etcdlock.wiring import import_for_threads, open_stores

logger = logging.getLogger("celery_etcdlock")

#: How long an unreachable etcd may delay a worker's start.
LOOK_SECONDS = 2.0


class CheckSettings(bootsteps.Step):
    """Refuses to start a worker that couldn't lock. An unreachable etcd is a warning: it may come up later."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        if "eventlet" in getattr(worker.pool_cls, "__module__", ""):
            raise ImproperlyConfigured(
                "celery-etcdlock doesn't support the eventlet pool (-P eventlet): use -P gevent, threads or prefork"
            )
        locks = EtcdLocks.from_app(worker.app)
        settings = locks.settings
        if worker.task_events:
            locks.send_celery_events(worker.hostname)
        for task in locked_tasks(worker.app):
            check_policies(worker.app, task, settings)
            warn_of_coroutine(task, worker.pool_cls)
        _ = locks.manager  # parses the endpoints, imports the listeners
        import_for_threads(settings)
        warn_if_away(settings)
        logger.info("celery-etcdlock: locks in %s under %s, TTL %s s", settings.where, settings.prefix, settings.ttl)


def policy_names(options: TaskOptions, settings: Settings) -> frozenset[str]:
    """The policies that a task has, as far as they are known beforehand."""
    by_setting = {settings.on_conflict} if options.on_conflict is None else set()
    return options.policies.names | by_setting


def check_policies(app: Celery, task: SingletonTask[Any, Any], settings: Settings) -> None:
    """Raises ``ImproperlyConfigured``, which names the task and the remedy."""
    names = policy_names(task._lock_plan.options, settings)
    backend = type(task.backend).__name__
    for name in having(names, lambda facts: facts.needs_result):
        if task.ignore_result or backend in ("DisabledBackend", "RPCBackend"):
            why = "ignore_result is set" if task.ignore_result else f"the result backend is {backend}"
            raise ImproperlyConfigured(
                f"task {task.name!r}: on_conflict={name!r} needs the stored result of another run, but {why}: use a "
                "backend that keeps results (Redis, a database, memcached), or another policy"
            )
    in_order = having(names, lambda facts: facts.in_order)
    has_delays = app.conf.get("broker_native_delayed_delivery_queue_type") is not None or not has_quorum_queues(app)
    if in_order and not has_delays:
        raise ImproperlyConfigured(
            f"task {task.name!r}: on_conflict={in_order[0]!r} puts messages back with a "
            "delay, and without broker_native_delayed_delivery_queue_type (Celery 5.5) delayed messages of a quorum "
            "queue block its worker: use on_conflict='skip' or 'raise', a classic queue, or a newer Celery"
        )


def warn_of_coroutine(task: Any, pool: Any) -> None:
    """Not an error: the worker may be for other queues."""
    if type(task)._etcdlock_is_async and not has_own_call(type(task)) and not is_awaited_by(pool):
        logger.warning(
            "celery-etcdlock: task %r is an async def, which this worker's pool doesn't await: its messages fail here. "
            "Route them to a worker with celery-aio-pool's pool.",
            task.name,
        )


def warn_if_away(settings: Settings) -> None:
    """Ask the lock store, on a connection that no child inherits."""
    if settings.in_memory or settings.channel is not None:
        return  # a grpc channel must not be used before a fork
    store, renewal_store = open_stores(settings)
    try:
        store.perform(Look("celery-etcdlock worker's start"), LOOK_SECONDS)
    except LockUnavailable as error:
        logger.warning(
            "celery-etcdlock: etcd is unreachable; locked tasks will wait: %s. Check etcdlock_endpoints; "
            "`celery -A PROJECT etcdlock doctor` says more.",
            error,
        )
    finally:
        store.close()
        renewal_store.close()
