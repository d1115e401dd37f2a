"""The table of joined runs, and what Celery's own events then say."""

from __future__ import annotations

import os
import uuid
from typing import Any

import pytest

from celery_etcdlock.core.events import TaskDeduplicated
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.listeners.joined_runs import MOST_ID_BYTES, PLACES, JoinedRuns
from celery_etcdlock.worker.name_joined import name_joined


def joins(task_id: str, joined: str | None) -> TaskDeduplicated:
    return TaskDeduplicated("a", Record(Delivery(task_id), "p.t", "host", 7, 1.0), "why", joined)


def test_what_a_forked_process_writes_is_read_once() -> None:
    table = JoinedRuns()
    child = os.fork()
    if child == 0:
        table(joins("mine", "theirs"))
        os._exit(0)
    os.waitpid(child, 0)
    assert table.take("other") is None
    assert table.take("mine") == "theirs"
    assert table.take("mine") is None  # its retry runs itself


def test_no_task_is_given_the_entry_of_another() -> None:
    table = JoinedRuns()
    written = {str(uuid.uuid4()): str(uuid.uuid4()) for _ in range(3 * PLACES)}
    for task_id, joined in written.items():
        table(joins(task_id, joined))
    read = {task_id: table.take(task_id) for task_id in written}
    assert all(read[task_id] in (None, joined) for task_id, joined in written.items())
    assert sum(joined is not None for joined in read.values()) > PLACES / 2


@pytest.mark.parametrize("joined", [None, "", "x" * (MOST_ID_BYTES + 1)])
def test_a_skip_and_what_does_not_fit_are_not_told(joined: str | None) -> None:
    table = JoinedRuns()
    table(joins("mine", "theirs before"))
    table(joins("other", joined))
    assert table.take("other") is None


@pytest.mark.parametrize("joined", ["é" * (MOST_ID_BYTES // 2), "x" * MOST_ID_BYTES])
def test_what_just_fits_is_told(joined: str) -> None:
    table = JoinedRuns()
    table(joins("\ud800", joined))
    assert table.take("\ud800") == joined


class Dispatcher:
    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, type: str, blind: bool = False, **fields: Any) -> str:
        self.sent.append((type, fields))
        return "sent"


@pytest.mark.parametrize(
    ("kind", "field"), [("task-succeeded", "result"), ("task-failed", "exception"), ("task-retried", "exception")]
)
def test_the_event_of_a_joined_end_says_so(kind: str, field: str) -> None:
    table, dispatcher = JoinedRuns(), Dispatcher()
    name_joined(dispatcher, table)
    table(joins("mine", "theirs"))
    assert dispatcher.send("task-started", uuid="mine", pid=1) == "sent"  # type: ignore[call-arg]
    assert dispatcher.send(kind, uuid="other", **{field: "7"}) == "sent"
    assert dispatcher.send(kind, uuid="mine", **{field: "7"}) == "sent"
    dispatcher.send("worker-heartbeat", freq=2)
    assert dispatcher.sent == [
        ("task-started", {"uuid": "mine", "pid": 1}),
        (kind, {"uuid": "other", field: "7"}),
        (kind, {"uuid": "mine", field: "joined theirs: 7", "joined": "theirs"}),
        ("worker-heartbeat", {"freq": 2}),
    ]
