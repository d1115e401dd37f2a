"""Lock events as Celery events, for ``celery events``, Flower and other readers.

``etcdlock-acquired``, ``-released``, ``-conflict``, ``-waiting`` and ``-lost`` carry the task's ``uuid`` and leave its
state alone. ``task-deduplicated`` is only for a task that ended without having run: readers take it for its last state.
For one that joined, Celery's own event of its end comes as well (``worker.name_joined``).

One real thread of each process publishes them, over a connection of its own. So a broker that is slow or away delays no
lock, and no connection is shared across forks. Up to ``MOST_WAITING`` events wait for that thread; more are dropped.
At the end of a process it has ``FLUSH_SECONDS`` to publish what waits.
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

_TYPES: dict[type, str] = {
    lock_events.LockAcquired: "etcdlock-acquired",
    lock_events.LockReleased: "etcdlock-released",
    lock_events.LockConflicted: "etcdlock-conflict",
    lock_events.LockWaiting: "etcdlock-waiting",
    lock_events.LockWasLost: "etcdlock-lost",
    lock_events.TaskDeduplicated: "task-deduplicated",
    lock_events.TickSent: "etcdlock-tick",
    lock_events.BeatTookOver: "etcdlock-beat",
}


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
    fields: dict[str, Any] = {"uuid": event.record.delivery.task_id, "task": event.record.task, "lock": event.name}
    if event.record.about is not None:
        fields["about"] = event.record.about
    for name, value in lock_events.facts_of(event).items():
        if isinstance(value, Record):
            fields |= {"holder": value.delivery.task_id, "holder_hostname": value.host}
        elif value is not None:
            fields[name] = round(value, 6) if isinstance(value, float) else value
    return _TYPES[type(event)], fields
