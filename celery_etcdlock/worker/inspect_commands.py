"""What a worker tells of its locks when it is asked: ``celery inspect locks`` and ``celery inspect stats``.

Answered from memory: a handler runs on the worker's hub, which must never wait for etcd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.worker.control import inspect_command

if TYPE_CHECKING:
    from celery_etcdlock.listeners.figures import Figures


class PoolMemory(bootsteps.StartStopStep):
    """Makes the memory into which all processes of the pool write, before it forks: figures, and joined runs."""

    #: It finds out how many processes there may be.
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        # Only here: every ``celery`` command imports this module.
        from celery_etcdlock.app.etcd_locks import EtcdLocks
        from celery_etcdlock.listeners.figures import Figures
        from celery_etcdlock.listeners.joined_runs import JoinedRuns

        super().__init__(worker, **options)
        prefork = getattr(worker.pool_cls, "__module__", "") == "celery.concurrency.prefork"
        processes = max(worker.concurrency or 1, worker.max_concurrency or 1) if prefork else 1
        self.figures = Figures(processes)
        worker.etcdlock_figures = self.figures
        worker.etcdlock_joined = JoinedRuns()
        for listener in (self.figures, worker.etcdlock_joined):
            EtcdLocks.from_app(worker.app).add_listener(listener)

    def info(self, worker: Any) -> dict[str, Any]:  # type: ignore[override]  # typed as empty
        return {"etcdlock": self.figures.counts() | {"held": len(self.figures.held())}}


@inspect_command()
def locks(state: Any, **_: Any) -> list[dict[str, Any]]:
    """Locks that this worker's tasks hold, oldest first."""
    figures: Figures | None = getattr(state.consumer.controller, "etcdlock_figures", None)
    return [] if figures is None else figures.held()
