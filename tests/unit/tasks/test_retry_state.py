"""How a retry ended is its task's result, though Celery stores that it is retried only after the run."""

from __future__ import annotations

from typing import Any

import pytest
from celery import current_task, signals, states

from celery_etcdlock.core.operations import Release
from celery_etcdlock.tasks.execution import retry_state
from tests.unit.tasks.worker_in_memory import Worker


@pytest.fixture(params=["asks the request", "asks the task"])
def celery(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Celery from 5.7 on, and before."""
    how: str = request.param
    if how == "asks the task":
        monkeypatch.setattr(retry_state, "_ignores_result", None)
    elif retry_state._ignores_result is None:
        pytest.skip("this Celery asks the task only")
    return how


def stored(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that is stored from now on."""
    found: list[str] = []
    store = worker.app.backend.store_result

    def note(task_id: str, result: Any, state: str, *arguments: Any, **options: Any) -> Any:
        found.append(state)
        return store(task_id, result, state, *arguments, **options)

    monkeypatch.setattr(worker.app.backend, "store_result", note)
    return found


def retrying(worker: Worker, **options: Any) -> Any:
    def body() -> None:
        raise current_task.retry(countdown=0)

    return worker.task(body, lock_key="name", **options)


def test_a_retry_that_ends_during_the_release(worker: Worker, monkeypatch: pytest.MonkeyPatch, celery: str) -> None:
    result = retrying(worker).delay()
    [message] = worker.messages()
    worker.on_operation(monkeypatch, Release, lambda: worker.app.backend.mark_as_revoked(result.id, "expired"))
    worker.run(message)
    assert result.state == states.REVOKED
    assert len(worker.messages()) == 1


def test_retry_is_stored_once_and_told(worker: Worker, monkeypatch: pytest.MonkeyPatch, celery: str) -> None:
    told: list[object] = []

    def listen(reason: object, **_: object) -> None:
        told.append(reason)

    signals.task_retry.connect(listen)
    result = retrying(worker).delay()
    [message] = worker.messages()
    found = stored(worker, monkeypatch)
    worker.run(message)
    signals.task_retry.disconnect(listen)
    assert found == [states.RETRY]
    assert len(told) == 1
    assert result.state == states.RETRY


@pytest.mark.parametrize("options", [{"ignore_result": True}, {"store_errors_even_if_ignored": True}])
def test_what_the_task_says_of_its_results_holds(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, celery: str, options: dict[str, bool]
) -> None:
    retrying(worker, **options).delay()
    [message] = worker.messages()
    found = stored(worker, monkeypatch)
    worker.run(message)
    assert found == ([] if "ignore_result" in options else [states.RETRY])


def test_a_message_that_ends_as_soon_as_it_is_sent_back(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, celery: str
) -> None:
    """Revoked, say: its worker discards it at once."""
    task = worker.task(lock_key="name", on_conflict="retry")
    with worker.locks.lock("name"):
        result = task.delay()
        [message] = worker.messages()
        publish = task.apply_async

        def publish_and_revoke(*arguments: Any, **options: Any) -> Any:
            sent = publish(*arguments, **options)
            worker.app.backend.mark_as_revoked(result.id, "revoked")
            return sent

        monkeypatch.setattr(task, "apply_async", publish_and_revoke)
        worker.run(message)
    assert result.state == states.REVOKED


def test_a_backend_that_is_away_is_left_to_celery(worker: Worker, monkeypatch: pytest.MonkeyPatch, celery: str) -> None:
    result = retrying(worker).delay()
    [message] = worker.messages()
    mark = worker.app.backend.mark_as_retry
    calls: list[object] = []

    def once(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1 and celery == "asks the request":
            raise ConnectionError("away")
        return mark(*arguments, **options)

    monkeypatch.setattr(worker.app.backend, "mark_as_retry", once)
    worker.run(message)
    assert result.state == states.RETRY
    assert len(calls) == (2 if celery == "asks the request" else 1)
