"""What a call took, the end of its message frees, where that comes before the lock is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Task
from celery.app import trace
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.local import Proxy

from celery_etcdlock import singleton_task
from celery_etcdlock.tasks.execution import run_under_lock
from tests.unit.tasks.lab import Lab, messages, run_message
from tests.waiting import wait_for

QUEUED = {"until_executing": "name:queued", "until_executed": "name", "until_and_while_executing": "name:queued"}


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.delenv("ETCDLOCK_ENDPOINTS", raising=False)
    lab = Lab()
    yield lab
    lab.close()


def define(
    lab: Lab, lock: str, before_start: Callable[..., Any] | None = None, body: Any = None, **options: Any
) -> Any:
    class Base(Task):  # type: ignore[type-arg]
        abstract = True

    if before_start is not None:
        Base.before_start = before_start  # type: ignore[method-assign]
    made: Any = {"app": lab.app, "base": Base, "name": "task", "shared": False, "lock": lock, "lock_key": "name"}
    return singleton_task(**made | options)(body or lab.body)


def raising(error: BaseException) -> Callable[..., Any]:
    def before_start(*_: Any) -> None:
        raise error

    return before_start


@pytest.mark.parametrize("lock", QUEUED)
@pytest.mark.parametrize(
    "error", [PermissionError("no licence"), Ignore(), Reject(requeue=False)], ids=lambda error: type(error).__name__
)
def test_a_hook_that_fails(lab: Lab, lock: str, error: Exception) -> None:
    task = define(lab, lock, raising(error))
    first, message = lab.publish(task)
    assert lab.locks.holders(QUEUED[lock])
    run_until_it_ends(lab, message)
    wait_for(lambda: not lab.locks.holders(QUEUED[lock]), "free")
    assert task.delay().id != first.id


@pytest.mark.parametrize("lock", QUEUED)
def test_a_call_of_a_base_class_that_fails_before_it_comes_to_the_body(lab: Lab, lock: str) -> None:
    class Checks(Task):  # type: ignore[type-arg]
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise PermissionError("no licence")

    first, message = lab.publish(define(lab, lock, base=Checks))
    run_message(lab.app, message)
    assert first.state == "FAILURE"
    assert not lab.locks.holders(QUEUED[lock])


def test_a_tracer_that_is_given_a_proxy_of_the_task(lab: Lab) -> None:
    """As New Relic's."""
    task = define(lab, "until_executed", raising(PermissionError()))
    _, message = lab.publish(task)
    itself = lab.app.tasks["task"]
    run_message(lab.app, message, lambda name, _, app: trace.build_tracer(name, Proxy(lambda: itself), app=app))
    assert not lab.locks.holders("name")


@pytest.mark.parametrize("lock", QUEUED)
@pytest.mark.parametrize("error", [Reject(requeue=True), SystemExit()], ids=lambda error: type(error).__name__)
def test_what_comes_again_keeps_it(lab: Lab, lock: str, error: BaseException) -> None:
    _, message = lab.publish(define(lab, lock, raising(error)))
    run_until_it_ends(lab, message)
    assert lab.locks.holders(QUEUED[lock])


@pytest.mark.parametrize("lock", QUEUED)
def test_a_hook_that_retries(lab: Lab, lock: str) -> None:
    def before_start(task: Any, *_: Any) -> None:
        if not task.request.retries:
            task.retry(countdown=0)

    task = define(lab, lock, before_start)
    first, message = lab.publish(task)
    run_message(lab.app, message)
    assert lab.locks.holders(QUEUED[lock])
    [again] = messages(lab.app)
    run_message(lab.app, again)
    assert first.state == "SUCCESS"
    assert lab.bodies == (["UNLOCKED"] if lock == "until_executing" else ["name"])
    assert not lab.locks.holders(QUEUED[lock])


def test_a_place_in_line(lab: Lab) -> None:
    """Of whatever lifetime."""
    licences = [True]

    def before_start(*_: Any) -> None:
        if not licences:
            raise PermissionError

    task = define(lab, "while_executing", before_start, on_conflict="wait")
    _, message = lab.publish(task)
    with lab.locks.lock("name"):
        run_message(lab.app, message)
        assert len(lab.locks.holders("name")) == 2
        licences.clear()
        [again] = messages(lab.app)
        run_message(lab.app, again)
        wait_for(lambda: len(lab.locks.holders("name")) == 1, "the place is free")


@pytest.mark.parametrize("lock", QUEUED)
def test_arguments_that_dont_fit_and_results_that_cant_be_encoded(lab: Lab, lock: str) -> None:
    def body(number: int = 0) -> object:
        return object()

    task = define(lab, lock, None, body, typing=False, lock_key=None)
    for args in ((1, 2, 3), ()):
        result, message = lab.publish(task, *args)
        run_message(lab.app, message)
        assert result.state == "FAILURE"
        assert not lab.locks.holders(QUEUED[lock].replace("name", "task"))


@pytest.mark.parametrize("lock", QUEUED)
def test_a_result_backend_that_is_away(lab: Lab, lock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = define(lab, lock, track_started=True)
    _, message = lab.publish(task)

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(lab.app.backend, "store_result", away)
    with pytest.warns(RuntimeWarning), pytest.raises(ConnectionError):
        run_message(lab.app, message)
    assert lab.bodies == []
    assert not lab.locks.holders(QUEUED[lock])


@pytest.mark.parametrize("ignore_result", [False, True])
def test_an_eager_skip_is_stored_as_what_it_is(lab: Lab, ignore_result: bool) -> None:
    lab.app.conf.update(task_always_eager=True, task_store_eager_result=True)
    task = define(lab, "while_executing", ignore_result=ignore_result)
    with lab.locks.lock("name"):
        result = task.delay()
    assert result.state == "REVOKED"
    assert lab.app.AsyncResult(result.id).state == ("PENDING" if ignore_result else "REVOKED")


def run_until_it_ends(lab: Lab, message: Any) -> None:
    with contextlib.suppress(SystemExit):
        run_message(lab.app, message)


@pytest.mark.parametrize("lock", QUEUED)
@pytest.mark.parametrize("where", ["EtcdLocks.from_app", "_Execution", "take_charge"])
def test_a_time_limit_on_the_way_to_the_lock(lab: Lab, lock: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = define(lab, lock)
    _, message = lab.publish(task)

    owner, _, attribute = where.rpartition(".")
    place = getattr(run_under_lock, owner) if owner else run_under_lock
    original, struck = getattr(place, attribute), []

    def strikes_once(*args: Any, **options: Any) -> Any:
        if struck:
            return original(*args, **options)
        struck.append(None)
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(place, attribute, strikes_once)
    run_until_it_ends(lab, message)
    assert struck
    wait_for(lambda: not lab.locks.holders(QUEUED[lock]), "free")
