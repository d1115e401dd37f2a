"""Lock events as Celery events, for ``celery events``, Flower and whoever else reads them.

``etcdlock-acquired``, ``-released``, ``-conflict``, ``-waiting`` and ``-lost`` carry the task's ``uuid`` and leave its
state alone. ``task-deduplicated`` is only for a task that ended without having run: readers take it for its last state.
For one that joined, Celery's own event of its end comes as well (``worker.name_joined``).

They are published by one real thread of each process, over a connection of its own: so a broker that is slow or away
delays no lock, and there is no connection to share across forks. Up to ``MOST_WAITING`` events wait for it; more are
dropped, for events are for people. At the end of a process what waits gets ``FLUSH_SECONDS``.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import Any

from celery import Celery

from celery_etcdlock.core import events as lock_events
from celery_etcdlock.core.record import Record
from celery_etcdlock.native import Alarm, start_thread

logger = logging.getLogger("celery_etcdlock")

MOST_WAITING = 1000
FLUSH_SECONDS = 1.0
#: Seconds until the broker is tried again after it failed.
RETRY_SECONDS = 5.0


class CeleryEvents:
    """A ``Listener`` that publishes as the worker ``hostname``. Each process of the pool has a copy of it."""

    def __init__(self, app: Celery, hostname: str) -> None:
        self._app = app
        self._hostname = hostname
        self._pid = 0
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self._alarm = Alarm()
        self._empty = Alarm()
        self._stopped = False

    def __call__(self, event: lock_events.LockEvent, /) -> None:
        if self._pid != os.getpid():
            self._start()
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(_described(event))
            self._alarm.ring()

    def close(self) -> None:
        """Publish what waits, for at most ``FLUSH_SECONDS``, and end the thread."""
        if self._pid != os.getpid():
            return
        self._stopped = True
        self._alarm.ring()
        self._empty.wait(FLUSH_SECONDS)

    def _start(self) -> None:
        self._pid = os.getpid()
        self._stopped = False
        # The parent's thread isn't here, and its events are its own.
        self._waiting = deque()
        self._alarm = Alarm()
        self._empty = Alarm()
        start_thread(self._run, "celery-etcdlock-events")

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._publish()
            except Exception as error:
                logger.debug("celery-etcdlock: lock events can't be sent for now: %s", error)
                Alarm().wait(RETRY_SECONDS)
        self._empty.ring()

    def _publish(self) -> None:
        with (
            self._app.connection_for_write() as connection,
            self._app.events.Dispatcher(connection, hostname=self._hostname, buffer_while_offline=False) as dispatcher,
        ):
            while not self._stopped or self._waiting:
                while self._waiting:
                    kind, fields = self._waiting[0]
                    dispatcher.send(kind, **fields)
                    self._waiting.popleft()
                if not self._stopped:
                    self._alarm.wait(None)


def _described(event: lock_events.LockEvent) -> tuple[str, dict[str, Any]]:
    """The type of the Celery event and its fields."""
    fields: dict[str, Any] = {"uuid": event.record.delivery.task_id, "task": event.record.task, "lock": event.name}
    if event.record.about is not None:
        fields["about"] = event.record.about
    match event:
        case lock_events.LockAcquired():
            fields |= {"fencing_token": event.fencing_token, "waited_seconds": round(event.waited_seconds, 6)}
            return "etcdlock-acquired", fields
        case lock_events.LockReleased():
            fields |= {"fencing_token": event.fencing_token, "held_seconds": round(event.held_seconds, 6)}
            return "etcdlock-released", fields
        case lock_events.LockConflicted():
            return "etcdlock-conflict", fields | _holder(event.holder)
        case lock_events.LockWaiting():
            return "etcdlock-waiting", fields | _holder(event.holder)
        case lock_events.LockWasLost():
            return "etcdlock-lost", fields | {"fencing_token": event.fencing_token, "reason": event.reason}
        case lock_events.TaskDeduplicated():
            joined = {} if event.joined is None else {"joined": event.joined}
            return "task-deduplicated", fields | {"reason": event.reason} | joined
        case lock_events.TickSent():
            return "etcdlock-tick", fields | {"entry": event.entry, "late_seconds": round(event.late_seconds, 6)}
        case lock_events.BeatTookOver():
            fields |= {"fencing_token": event.fencing_token, "takeovers": event.takeovers}
            return "etcdlock-beat", fields


def _holder(holder: Record | None) -> dict[str, Any]:
    return {} if holder is None else {"holder": holder.delivery.task_id, "holder_hostname": holder.host}
