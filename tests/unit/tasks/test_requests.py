"""What a locked task asks of the store, in the common case. Each request is a round trip."""

from __future__ import annotations

from typing import Any

import pytest

from celery_etcdlock.core import operations as ops
from celery_etcdlock.core.operations import StoreOperation
from celery_etcdlock.core.replies import StoreReply
from tests.unit.tasks.worker_in_memory import Worker


@pytest.mark.parametrize(
    ("options", "at_call", "at_run"),
    [
        ({}, [], [ops.TryAcquire, ops.Release]),
        ({"lock": "until_executed"}, [ops.TryAll], [ops.Look, ops.Promote, ops.Release]),
        (
            {"lock": "until_executing"},
            [ops.TryAll],
            [ops.Look, ops.Release, ops.TryAcquire, ops.Release],
        ),
    ],
)
def test_no_more_than_it_takes(
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    at_call: list[type],
    at_run: list[type],
) -> None:
    task = worker.task(lock_key="name", **options)
    task.delay()
    worker.run(*worker.messages())  # with its leases
    asked: list[type] = []
    store = worker.locks.manager.store
    perform = store.perform

    def note(operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        asked.append(type(operation))
        return perform(operation, timeout_seconds)

    monkeypatch.setattr(store, "perform", note)
    task.delay()
    assert asked == at_call
    asked.clear()
    worker.run(*worker.messages())
    assert worker.ran == [None, None]
    assert asked == at_run
