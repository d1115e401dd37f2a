"""Frees the locks of messages that never start: revoked, expired, refused, or of a task that this worker doesn't know.

Only the worker's MainProcess meets them. The names of their locks come from their arguments and headers, and the keys
under these names say what they are (``core.protocol.drop_ended``): a claim, a queue position, or what the run before
left for this one. If that run hasn't ended yet, another look follows. A thread does all this, since the hub must not
block, and it goes on trying while etcd is unreachable. What it can't free until this worker ends expires by itself.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from celery.signals import task_rejected, task_revoked, task_unknown

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.tasks.entry.caller import delivery_of
from celery_etcdlock.tasks.execution.ended_before_lock import names_by_arguments, names_in_headers
from celery_etcdlock.tasks.message.headers import header
from celery_etcdlock.worker.listening_step import ListeningStep
from celery_etcdlock.worker.revoke_signal import revoked, tell_of_revokes
from celery_etcdlock.worker.timer_entries import waiting_requests

logger = logging.getLogger("celery_etcdlock")

#: Seconds between two looks, at first and at most, and for how long a run that hasn't ended is waited for.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0
LONGEST_SECONDS = 3600.0


@dataclass
class _Ended:
    """A message that ended without having started. ``call``: its task, arguments and headers."""

    delivery: Delivery
    names: set[str]
    call: tuple[Any, Any, Any, Any] | None
    since: float
    look_at: float = 0.0
    looks: int = 0


class FreeNeverStarted(ListeningStep):
    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._worker = worker
        self._locks = EtcdLocks.from_app(worker.app)
        #: None wakes the thread.
        self._messages: queue.SimpleQueue[_Ended | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._runs = False
        self._stopped = False
        worker.etcdlock_never_started = self
        self.connect(task_revoked, self._on_revoked)
        self.connect(task_rejected, self._on_message)
        self.connect(task_unknown, self._on_message)
        tell_of_revokes()
        self.connect(revoked, self._on_revokes)

    def stop(self, worker: Any) -> None:
        """No more messages come. The thread ends once it has freed what there is."""
        self.disconnect()
        self._stopped = True
        self._messages.put(None)

    def terminate(self, worker: Any) -> None:
        self.stop(worker)

    def _on_revokes(self, task_ids: Iterable[str] = (), **_: Any) -> None:
        """A message that waits here for its time is discarded only then: its lock is freed as soon as it is revoked."""
        for task_id in task_ids:
            for request in waiting_requests(getattr(self._worker, "timer", None), task_id):
                self.free(request.request_dict, request.task)

    def free(self, carrier: Any, task: Any = None) -> None:
        """Have what stands for this message freed, soon.

        ``carrier`` is its request or its headers; with its arguments, where ``task`` is known.
        """
        call = None
        if hasattr(task, "_lock_plan"):
            headers = carrier if isinstance(carrier, Mapping) else getattr(carrier, "headers", None)
            call = (task, header(carrier, "args"), header(carrier, "kwargs"), headers)
        names = names_in_headers(carrier)
        if not names and call is None:
            return
        self._messages.put(_Ended(delivery_of(carrier), names, call, time.monotonic()))
        with self._starting:
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="celery-etcdlock-cleanup", daemon=True).start()

    def _on_revoked(self, sender: Any = None, request: Any = None, **_: Any) -> None:
        self.free(request, sender)

    def _on_message(self, message: Any = None, **_: Any) -> None:
        self.free(getattr(message, "headers", None) or {})

    def _run(self) -> None:
        waiting: list[_Ended] = []
        while True:
            if self._stopped and not waiting:
                with self._starting:
                    if self._messages.empty():
                        self._runs = False
                        return
            timeout = max(0.0, min(each.look_at for each in waiting) - time.monotonic()) if waiting else None
            with contextlib.suppress(queue.Empty):
                ended = self._messages.get(timeout=timeout)
                waiting += [] if ended is None else [ended]
            for each in [each for each in waiting if each.look_at <= time.monotonic()]:
                try:
                    again = self._free(each)
                except Exception:
                    logger.exception("the locks of task %s, which never starts, can't be freed", each.delivery.task_id)
                    again = False
                if again and time.monotonic() - each.since < LONGEST_SECONDS:
                    pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(each.looks, 10), LONGEST_PAUSE_SECONDS)
                    each.looks, each.look_at = each.looks + 1, time.monotonic() + pause
                else:
                    waiting.remove(each)

    def _free(self, ended: _Ended) -> bool:
        """Returns whether another look is needed."""
        if ended.call is not None:
            ended.names |= names_by_arguments(*ended.call)
            ended.call = None
        again = False
        for name in sorted(ended.names):
            try:
                outcome = self._locks.manager.claims.drop_ended(name, ended.delivery)
            except LockUnavailable as error:
                if not ended.looks:
                    logger.warning("lock %r of a message that never starts can't be freed yet: %s", name, error)
                again = True
                continue
            again = again or outcome.look_again
            if outcome.dropped:
                logger.info("lock %r is free: its message was revoked, has expired or was refused", name)
        return again
