"""Who waits for a lock store that is away, and who is told at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest
from celery import Celery

from celery_etcdlock import LockUnavailable, singleton_task
from celery_etcdlock.app.circuit_breaker import CircuitBreaker
from celery_etcdlock.core.settings import Settings
from tests.etcd_server import free_ports

REFUSED = LockUnavailable("refused")
UNANSWERED = LockUnavailable("no answer", maybe_applied=True)


def settings_with(policy: str) -> Callable[[], Settings]:
    settings = {"etcdlock_timeout": 5, "etcdlock_on_unavailable": policy}
    return lambda: Settings.from_mapping(settings, {}, "")


@pytest.fixture
def now() -> list[float]:
    return [100.0]


@pytest.fixture
def circuit_breaker(now: list[float]) -> CircuitBreaker:
    return CircuitBreaker(settings_with("retry"), lambda: now[0])


def is_away(circuit_breaker: CircuitBreaker) -> bool:
    try:
        circuit_breaker.check()
    except LockUnavailable as error:
        return "cached failure" in str(error)
    return False


def test_one_at_a_time_tries(circuit_breaker: CircuitBreaker, now: list[float]) -> None:
    assert not is_away(circuit_breaker)
    circuit_breaker.tell(REFUSED)
    assert is_away(circuit_breaker)
    now[0] += 5
    assert not is_away(circuit_breaker)  # this one tries
    assert is_away(circuit_breaker)
    now[0] += 4
    circuit_breaker.tell(REFUSED)
    assert is_away(circuit_breaker)
    now[0] += 6
    assert not is_away(circuit_breaker)
    circuit_breaker.over()
    assert not is_away(circuit_breaker)


def test_one_unanswered_request_is_no_outage(circuit_breaker: CircuitBreaker) -> None:
    circuit_breaker.tell(UNANSWERED)
    assert not is_away(circuit_breaker)
    circuit_breaker.over()
    circuit_breaker.tell(UNANSWERED)
    assert not is_away(circuit_breaker)
    circuit_breaker.tell(UNANSWERED)
    assert is_away(circuit_breaker)


def test_it_is_said_once(circuit_breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "celery_etcdlock"):
        for _ in range(3):
            circuit_breaker.tell(REFUSED)
        circuit_breaker.over()
        circuit_breaker.over()
        circuit_breaker.tell(REFUSED)
    said = [record.getMessage() for record in caplog.records]
    assert ["can't acquire" in text for text in said] == [True, False, True]


def test_it_says_what_becomes_of_tasks(caplog: pytest.LogCaptureFixture) -> None:
    for policy, does in (("retry", "are retried"), ("raise", "fail with"), ("run", "run without a lock")):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "celery_etcdlock"):
            CircuitBreaker(settings_with(policy)).tell(REFUSED)
        assert f"Locked tasks {does}" in caplog.text.replace("aren't lost: they ", "")


def test_many_calls_are_held_up_once() -> None:
    app = Celery("outage", broker="memory://", set_as_current=False)
    app.conf.update(etcdlock_endpoints=f"127.0.0.1:{free_ports(1)[0]}", etcdlock_timeout=2)

    @singleton_task(app=app, name="mail", lock="until_executed", unique_on=["order"])
    def mail(order: int) -> None:
        """Is only published."""

    started = time.monotonic()
    for order in range(20):
        mail.delay(order)
    # Each by itself would wait for 1.5 s.
    assert time.monotonic() - started < 10
