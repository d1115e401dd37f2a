"""Has Celery's own event of a task's end say that the task joined another run, for Flower and other readers.

A joined task succeeds or fails with the other run's result, so its events look as if it had run. But its MainProcess
knows better (``listeners.joined_runs``): ``task-succeeded`` and ``task-failed`` then have the other's id in a field
``joined``, and the result, or the exception, that they tell begins with it. Nothing but the event is changed: the
stored result is the value itself.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from celery_etcdlock.listeners.joined_runs import JoinedRuns
from celery_etcdlock.tasks.singleton_task import locked_tasks

#: What tells a reader of each event how the run ended. A joined error may be one that the task is retried for.
TELLING = {"task-succeeded": "result", "task-failed": "exception", "task-retried": "exception"}


class NameJoined(bootsteps.StartStopStep):
    """See the module. There is a new dispatcher of events for each connection."""

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._is_of_use = bool(locked_tasks(consumer.app))

    def start(self, consumer: Any) -> None:
        if self._is_of_use and consumer.event_dispatcher is not None:
            name_joined(consumer.event_dispatcher, consumer.controller.etcdlock_joined)


def name_joined(dispatcher: Any, joined_runs: JoinedRuns) -> None:
    """From now on, the dispatcher's events of joined tasks say so."""
    send = dispatcher.send

    def send_named(type: str, *args: Any, **fields: Any) -> Any:
        telling = TELLING.get(type)
        if telling is not None and fields.get("uuid") is not None:
            joined = joined_runs.take(fields["uuid"])
            if joined is not None:
                fields |= {telling: f"joined {joined}: {fields.get(telling)}", "joined": joined}
        return send(type, *args, **fields)

    dispatcher.send = send_named
