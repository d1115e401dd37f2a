"""A copy of what ran to its end, and whose worker died before Celery stored how."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from celery import current_task, states
from celery.app import task as celery_task
from celery.exceptions import Ignore, WorkerLostError

from celery_etcdlock.core.operations import LookForDone
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.outcomes import Claim
from celery_etcdlock.tasks.execution import lost_result
from tests.unit.tasks.worker_in_memory import Worker


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits take no time; all of them."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)

    def now() -> float:
        return time.monotonic() + sum(slept)

    monkeypatch.setattr(lost_result, "time", SimpleNamespace(sleep=sleep, monotonic=now))
    return slept


def run_and_forget(worker: Worker, result: Any) -> Any:
    """Its worker dies before the result is stored: what is left are the marks, and a copy of the message."""
    [message] = worker.messages()
    worker.run(message)
    result.forget()
    assert result.state == states.PENDING
    message.headers["redelivered"] = True
    return message


@pytest.mark.parametrize("lifetime", ["while_executing", "until_executed"])
def test_its_result_says_that_it_ran_and_that_how_is_lost(worker: Worker, clock: list[float], lifetime: str) -> None:
    result = worker.task(lock=lifetime, lock_key="name").delay()
    worker.run(run_and_forget(worker, result))
    assert worker.ran == [None]
    assert result.state == states.FAILURE
    assert isinstance(result.result, WorkerLostError)
    assert "ran to its end" in str(result.result)
    assert sum(clock) >= 2 * worker.app.conf.etcdlock_timeout


def test_who_is_about_to_store_it_is_waited_for(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    result = worker.task(lock_key="name").delay()
    message = run_and_forget(worker, result)
    clock = SimpleNamespace(
        monotonic=time.monotonic, sleep=lambda seconds: worker.app.backend.mark_as_done(result.id, "its own")
    )
    monkeypatch.setattr(lost_result, "time", clock)
    worker.run(message)
    assert (result.state, result.result) == (states.SUCCESS, "its own")


@pytest.mark.parametrize("how", ["retry", "ignore"])
def test_an_end_that_is_no_result_is_no_lost_one(worker: Worker, clock: list[float], how: str) -> None:
    def body() -> None:
        raise current_task.retry(countdown=0) if how == "retry" else Ignore

    result = worker.task(body, lock_key="name").delay()
    worker.run(run_and_forget(worker, result))
    assert result.state == states.PENDING
    assert clock == []


@pytest.mark.parametrize("backend", ["rpc://", "disabled://"])
def test_where_results_are_nobody_else_s(worker: Worker, clock: list[float], backend: str) -> None:
    worker.app.conf.result_backend = backend
    worker.task(lock_key="name").delay()
    [message] = worker.messages()
    worker.run(message)
    worker.run(message)
    assert clock == []


@pytest.mark.parametrize(
    ("of_task", "of_call", "says"),
    [(False, True, False), (True, None, False), (True, False, hasattr(celery_task, "get_actual_ignore_result"))],
)
def test_a_result_that_celery_does_not_store_is_not_lost(
    worker: Worker, clock: list[float], of_task: bool, of_call: bool | None, says: bool
) -> None:
    """From Celery 5.7 on a call has the last word; before, a task that ignores its results always does."""
    options = {} if of_call is None else {"ignore_result": of_call}
    result = worker.task(lock_key="name", ignore_result=of_task).apply_async(**options)
    worker.run(run_and_forget(worker, result))
    assert worker.ran == [None]
    assert (result.state == states.FAILURE, bool(clock)) == (says, says)


def test_a_backend_that_is_away_is_no_error(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    result = worker.task(lock_key="name").delay()
    message = run_and_forget(worker, result)

    def away(task_id: str) -> str:
        raise ConnectionError("away")

    with monkeypatch.context() as context:
        context.setattr(worker.app.backend, "get_state", away)
        worker.run(message)
    assert result.state == states.PENDING
    assert worker.ran == [None]


def test_a_copy_of_what_has_run_is_no_run_for_which_a_lock_stands(worker: Worker) -> None:
    """``lock_at_least_for`` counts for a body, and none is entered."""
    worker.task(lock_key="name", lock_at_least_for=30.0).delay()
    [message] = worker.messages()
    worker.run(message)
    [key] = worker.locks.manager.keys("name")
    worker.locks.manager.claims.drop(Claim("name", key.token, key.mod_revision))
    worker.run(message)
    assert worker.ran == [None]
    assert worker.holders("name") == 0


def test_without_etcd_nothing_is_said_of_a_result(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """That it has run is known all the same, so it doesn't run again where tasks run without etcd."""
    worker.app.conf.etcdlock_on_unavailable = "run"
    result = worker.task(lock_key="name").delay()
    message = run_and_forget(worker, result)

    def away() -> None:
        raise LockUnavailable("away")

    worker.on_operation(monkeypatch, LookForDone, away)
    worker.run(message)
    assert worker.ran == [None]
    assert (result.state, clock) == (states.PENDING, [])
