"""What the gate does with a message that Celery keeps for its time, or for its rate limit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker.request import Request
from hypothesis import HealthCheck, example, given, settings
from kombu import Queue

from celery_etcdlock import EtcdLocks, SingletonTask
from celery_etcdlock.tasks.message.headers import WAITED_HEADER, WAITING_SINCE_HEADER, WAITS_FOR_HEADER
from celery_etcdlock.worker.gate import Gate
from celery_etcdlock.worker.lock_watcher import Waiter
from tests.unit.tasks.any_headers import HEADERS


class Timer:
    """Keeps what it is asked to call."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.schedule = SimpleNamespace(queue=[])

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

    def clear(self) -> None:
        self.waiters.clear()


@pytest.fixture
def new_gate() -> Iterator[Callable[..., Any]]:
    apps: list[Celery] = []

    def make(broker: str = "memory://", options: dict[str, Any] | None = None, **settings: Any) -> Any:
        app = Celery("gate", broker=broker, set_as_current=False)
        app.conf.update(etcdlock_endpoints="127.0.0.1:1", **settings)

        @app.task(base=SingletonTask, name="task", shared=False, **(options or {}))
        def task() -> None: ...

        app.finalize()
        apps.append(app)
        made: Any = Gate(Consumer(app))
        made._watcher = Watched()
        return made

    yield make
    for app in apps:
        EtcdLocks.from_app(app).close()


@pytest.fixture
def gate(new_gate: Callable[..., Any]) -> Any:
    return new_gate()


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
    gate._pass_ready(gate._watcher.waiters[:])
    assert gate._consumer.passed == []
    request._eta_timer_entry = gate._consumer.timer.call_after(9, gate._consumer.apply_eta_task, (request,))
    gate._pass_ready(gate._watcher.waiters[:])
    assert gate._consumer.passed == [request]
    gate._consumer.timer.fire()
    assert gate._consumer.passed == [request], "Celery's own timer must not bring it a second time"


def test_a_message_in_the_bucket_of_a_rate_limit_is_not_looked_out_for(gate: Any) -> None:
    gate._consumer.task_buckets["task"] = []
    request = message(gate)
    gate._on_received(request=request)
    assert gate._watcher.waiters == []


def test_a_message_leaves_the_gate_through_the_bucket_of_its_rate_limit(gate: Any) -> None:
    bucket = gate._consumer.task_buckets["task"] = []
    request = message(gate)
    gate.admit(request)
    gate._pass_ready(gate._watcher.waiters[:])
    assert gate._consumer.passed == []
    assert bucket == [request]
    gate.admit(request)
    assert gate._consumer.passed == [request]


@pytest.mark.parametrize(
    ("broker", "settings", "said"),
    [
        ("redis://127.0.0.1:1", {}, "which is 1440 s, 0.4 of the broker's limit of 3600 s (visibility_timeout"),
        (
            "redis://127.0.0.1:1",
            {"broker_transport_options": {"visibility_timeout": 100}},
            "which is 40 s, 0.4 of the broker's limit of 100 s (visibility_timeout in broker_transport_options)",
        ),
        ("amqp://127.0.0.1:1", {}, "which is 720 s, 0.4 of the broker's limit of 1800 s (the default consumer_timeout"),
        (
            "amqp://127.0.0.1:1",
            {"task_queues": [Queue("celery", queue_arguments={"x-consumer-timeout": 60_000})]},
            "which is 24 s, 0.4 of the broker's limit of 60 s (x-consumer-timeout of a queue)",
        ),
    ],
)
def test_a_wait_that_the_broker_cuts_short_is_warned_of(
    new_gate: Callable[..., Any], caplog: pytest.LogCaptureFixture, broker: str, settings: dict[str, Any], said: str
) -> None:
    caplog.set_level("WARNING", "celery_etcdlock")
    new_gate(broker, {"on_conflict": "wait", "wait_timeout": 4000.0}, **settings)
    assert "task (4000 s)" in caplog.text
    assert said in caplog.text
    assert "Raise the limit to 10000 s, or lower wait_timeout" in caplog.text


@pytest.mark.parametrize("broker", ["redis://127.0.0.1:1", "amqp://127.0.0.1:1"])
@pytest.mark.parametrize("options", [{"on_conflict": "wait"}, {"on_conflict": "skip", "wait_timeout": 4000.0}])
def test_a_wait_that_fits_and_no_wait_are_not_warned_of(
    new_gate: Callable[..., Any], caplog: pytest.LogCaptureFixture, broker: str, options: dict[str, Any]
) -> None:
    caplog.set_level("WARNING", "celery_etcdlock")
    new_gate(broker, options)
    assert caplog.text == ""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HEADERS)
@example({WAITING_SINCE_HEADER: 10**400})
@example({WAITED_HEADER: [float("nan"), 1]})
@example({WAITS_FOR_HEADER: ["lock"]})
def test_no_header_ends_a_worker_or_loses_a_message(gate: Any, headers: dict[str, Any]) -> None:
    """Whatever they are, the message is parked or goes to the pool; and once it was parked, it goes in the end."""
    request = message(gate)
    request._request_dict |= {name: value for name, value in headers.items() if name != "id"}
    gate._consumer.passed.clear()
    gate._on_received(request)
    assert gate.admit(request) is None
    assert (request in gate._consumer.passed) is not ("m1" in gate._parked)
    if "m1" in gate._parked:
        gate._parked["m1"].until = 0.0
        gate.admit(request)
        assert gate._consumer.passed == [request]
    gate.stop(gate._consumer)


def test_what_the_gate_itself_gets_wrong_ends_no_worker(gate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(gate, "_registered", wrong)
    request = message(gate)
    gate.admit(request)
    assert gate._consumer.passed == [request]
