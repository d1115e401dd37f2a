"""Frees the locks of pool processes that die, from the worker's MainProcess."""

from __future__ import annotations

import atexit
from typing import Any

from celery import bootsteps

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.locking.child_lease_guardian import Guardian

#: Seconds that a worker's end may wait for its last processes to end, to free what they held.
LAST_LOOK_SECONDS = 2.0


class LookAfterChildren(bootsteps.StartStopStep):
    """Starts the guardian of a prefork pool. It is made before the pool forks, and works until its last process ends.

    A step's ``stop`` comes at the start of a warm shutdown, while bodies still run, so it isn't used (rule 12).
    """

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._guardian: Guardian | None = None
        if getattr(worker.pool_cls, "__module__", "") == "celery.concurrency.prefork":
            self._guardian = EtcdLocks.from_app(worker.app).look_after_children()

    def start(self, worker: Any) -> None:
        if self._guardian is not None:
            self._guardian.start()
            # Celery's own signal for a worker's end isn't sent in a cold shutdown.
            atexit.register(self._guardian.finish, LAST_LOOK_SECONDS)
