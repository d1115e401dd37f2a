"""Frees the locks of messages that never start: revoked, expired, refused, or of a task that this worker doesn't know.

Only the worker's MainProcess meets them. The message's headers say what it holds, and a claim is dropped only as the
message knows it: if a task runs with that lock, it has been rewritten since, and nothing happens. The hub must not
block, so a thread does it. What can't be dropped lapses by itself.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from celery import bootsteps
from celery.signals import task_rejected, task_revoked, task_unknown
from celery.worker import state as worker_state

from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.claim import Claim
from celery_etcdlock.tasks.headers import claims_in, line_in
from celery_etcdlock.tasks.runtime import EtcdLocks
from celery_etcdlock.worker.revokes import revoked, tell_of_revokes

__all__ = ["FreeNeverStarted"]

logger = logging.getLogger("celery_etcdlock")


class FreeNeverStarted(bootsteps.Step):
    """See the module."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._locks = EtcdLocks.from_app(worker.app)
        self._claims: queue.SimpleQueue[Claim] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._runs = False
        task_revoked.connect(self._on_revoked, weak=False)
        task_rejected.connect(self._on_message, weak=False)
        task_unknown.connect(self._on_message, weak=False)
        tell_of_revokes()
        revoked.connect(self._on_revokes, weak=False)

    def _on_revokes(self, task_ids: Iterable[str] = (), **_: Any) -> None:
        """A message that waits here for its time is discarded only then: its lock is freed as soon as it is revoked."""
        for task_id in task_ids:
            request = worker_state.requests.get(task_id)
            if request is not None:
                self._drop(SimpleNamespace(headers=request.request_dict))

    def _on_revoked(self, request: Any = None, **_: Any) -> None:
        self._drop(request)

    def _on_message(self, message: Any = None, **_: Any) -> None:
        self._drop(message)

    def _drop(self, carrier: Any) -> None:
        line = line_in(carrier)
        claims = [*claims_in(carrier), *([line] if line is not None else [])]
        for claim in claims:
            self._claims.put(claim)
        if claims:
            with self._starting:
                if not self._runs:
                    self._runs = True
                    threading.Thread(target=self._run, name="celery-etcdlock-cleanup", daemon=True).start()

    def _run(self) -> None:
        while True:
            claim = self._claims.get()
            try:
                if self._locks.manager.pending.drop(claim):
                    logger.info("lock %r is free: its message was revoked, has expired or was refused", claim.name)
            except LockUnavailable as error:
                logger.warning("lock %r of a message that never starts stands until its time: %s", claim.name, error)
            except Exception:
                logger.exception("lock %r of a message that never starts can't be freed", claim.name)
