"""A worker's start: finds wrong settings before the first task does."""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps
from celery.exceptions import ImproperlyConfigured

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.core.operations import Look
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.tasks.entry.coroutines import is_awaited_by
from celery_etcdlock.tasks.entry.seam import has_own_call
from celery_etcdlock.wiring import import_for_threads, open_stores
from celery_etcdlock.worker.policy_checks import check_at_worker

logger = logging.getLogger("celery_etcdlock")


#: How long an unreachable etcd may delay a worker's start.
LOOK_SECONDS = 2.0


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


def warn_of_coroutine(task: Any, pool: Any) -> None:
    """Not an error: the worker may be for other queues."""
    if type(task)._etcdlock_is_async and not has_own_call(type(task)) and not is_awaited_by(pool):
        logger.warning(
            "celery-etcdlock: task %r is an async def, which this worker's pool doesn't await: its messages fail here. "
            "Route them to a worker with celery-aio-pool's pool.",
            task.name,
        )


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
        for task in worker.app.tasks.values():
            plan = getattr(task, "_lock_plan", None)
            if plan is not None:
                check_at_worker(worker.app, task, plan.options, settings)
                warn_of_coroutine(task, worker.pool_cls)
        _ = locks.manager  # parses the endpoints, imports the listeners
        import_for_threads(settings)
        warn_if_away(settings)
        logger.info("celery-etcdlock: locks in %s under %s, TTL %s s", settings.where, settings.prefix, settings.ttl)
