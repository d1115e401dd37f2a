"""A worker's start: finds wrong settings before the first task does."""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps
from celery.exceptions import ImproperlyConfigured

from celery_etcdlock.tasks.runtime import EtcdLocks
from celery_etcdlock.wiring import MEMORY_ENDPOINT, import_for_threads
from celery_etcdlock.worker.policies import check_at_worker

__all__ = ["CheckSettings"]

logger = logging.getLogger("celery_etcdlock")


class CheckSettings(bootsteps.Step):
    """Refuses to start a worker that couldn't lock. Connects to nothing: etcd may come up later than the worker."""

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
        _ = locks.manager  # parses the endpoints, imports the listeners
        import_for_threads(settings)
        where = f"etcd at {', '.join(settings.endpoints)}"
        if settings.endpoints == (MEMORY_ENDPOINT,):
            where = "each process's own memory, which protects nothing across processes"
        logger.info("celery-etcdlock: locks in %s under %s, TTL %s s", where, settings.prefix, settings.ttl)
