"""What the gate does with a message that Celery keeps for its time, or for its rate limit."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker.request import Request

from celery_etcdlock import EtcdLocks, SingletonTask
from celery_etcdlock.tasks.headers import WAITS_FOR_HEADER
from celery_etcdlock.worker.gate import Gate
from celery_etcdlock.worker.lookout import Waiter

pytestmark = pytest.mark.skipif(not hasattr(Request, "_eta_timer_entry"), reason="before Celery 5.7 there is no gate")


class Timer:
    """Keeps what it is asked to call."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def call_after(self, seconds: float, call: Any, args: tuple[Any, ...] = (), **_: Any) -> object:
        self.calls.append((call, args))
        return self.calls[-1]

    def cancel(self, entry: Any) -> None:
        self.calls.remove(entry)

    def fire(self) -> None:
        calls, self.calls = self.calls, []
        for call, args in calls:
            call(*args)


class Consumer:
    """As much of Celery's as the gate uses. ``passed`` is what got to the pool."""

    hub = None
    disable_rate_limits = False

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.timer = Timer()
        self.task_buckets: dict[str, Any] = defaultdict(lambda: None)
        self.qos = SimpleNamespace(increment_eventually=lambda: None, decrement_eventually=lambda: None)
        self.controller = SimpleNamespace(semaphore=SimpleNamespace(value=1))
        self.passed: list[Any] = []
        self.on_task_request: Any = self.passed.append

    def apply_eta_task(self, request: Any) -> None:
        self.on_task_request(request)

    def _limit_post_eta(self, request: Any, bucket: list[Any], tokens: int) -> None:
        bucket.append(request)


class Watched:
    """In the lookout's place."""

    def __init__(self) -> None:
        self.waiters: list[Waiter] = []

    def add(self, waiter: Waiter) -> None:
        self.waiters.append(waiter)

    def remove(self, waiter: Waiter) -> None:
        self.waiters.remove(waiter)

    def look_at(self, names: Any) -> None:
        pass


@pytest.fixture
def gate() -> Any:
    app = Celery("gate", broker="memory://", set_as_current=False)
    app.conf.etcdlock_endpoints = "127.0.0.1:1"

    @app.task(base=SingletonTask, name="task", shared=False)
    def task() -> None: ...

    app.finalize()
    made: Any = Gate(Consumer(app))
    made._lookout = Watched()
    yield made
    EtcdLocks.from_app(app).close()


def message(gate: Any) -> Any:
    """One that came back with a delay for a lock, as Celery tells of it."""
    request = Request.__new__(Request)
    request._request_dict = {"id": "m1", "task": "task", WAITS_FOR_HEADER: "lock"}
    request.id, request.name, request._eta, request._expires = "m1", "nickname", "a time", None
    request._task = gate._consumer.app.tasks["task"]
    return request


def test_a_turn_that_comes_before_celery_has_set_its_timer_waits_for_that(gate: Any) -> None:
    request = message(gate)
    gate._on_received(request=request)
    gate._let_go(gate._lookout.waiters[:])
    assert gate._consumer.passed == []
    request._eta_timer_entry = gate._consumer.timer.call_after(9, gate._consumer.apply_eta_task, (request,))
    gate._let_go(gate._lookout.waiters[:])
    assert gate._consumer.passed == [request]
    gate._consumer.timer.fire()
    assert gate._consumer.passed == [request], "Celery's own timer must not bring it a second time"


def test_a_message_in_the_bucket_of_a_rate_limit_is_not_looked_out_for(gate: Any) -> None:
    gate._consumer.task_buckets["task"] = []
    request = message(gate)
    gate._on_received(request=request)
    assert gate._lookout.waiters == []


def test_a_message_leaves_the_gate_through_the_bucket_of_its_rate_limit(gate: Any) -> None:
    bucket = gate._consumer.task_buckets["task"] = []
    request = message(gate)
    gate.admit(request)
    gate._let_go(gate._lookout.waiters[:])
    assert gate._consumer.passed == []
    assert bucket == [request]
    gate.admit(request)
    assert gate._consumer.passed == [request]
