"""Where a message of a quorum queue goes that has to come back after a delay."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from kombu import Exchange, Queue

from celery_etcdlock.tasks.message.broker_delay import with_delay

pytest.importorskip("kombu.transport.native_delayed_delivery", reason="Celery 5.4 has no delays on quorum queues")

QUORUM = {"x-queue-type": "quorum"}
#: How RabbitMQ's delays write five seconds.
FIVE_SECONDS = "0." * 25 + "1.0.1."


class Pool:
    """Connections that take every binding, or none."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    @contextmanager
    def acquire(self, block: bool = False) -> Any:
        if self._error is not None:
            raise self._error
        yield self

    @contextmanager
    def channel(self) -> Any:
        yield self


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    made = Celery("delays", broker="memory://", set_as_current=False)
    made.conf.task_queues = [
        Queue("classic", Exchange("direct", type="direct"), routing_key="classic"),
        Queue("first", Exchange("direct", type="direct"), routing_key="first", queue_arguments=QUORUM),
        Queue("second", Exchange("topics", type="topic"), routing_key="a.b", queue_arguments=QUORUM),
    ]
    monkeypatch.setattr(made, "_pool", Pool())
    monkeypatch.setattr(Queue, "bind", lambda self, channel: self)
    monkeypatch.setattr(Queue, "bind_to", lambda self, exchange, routing_key: None)
    return made


@pytest.mark.parametrize(
    ("exchange", "key", "queue"),
    [
        ("", "first", "first"),
        ("topics", "a.b", "second"),
        ("celery_delayed_delivery", FIVE_SECONDS + "etcdlock.first", "first"),
        ("celery_delayed_delivery", FIVE_SECONDS + "a.b", "second"),
    ],
)
def test_it_goes_back_to_the_queue_that_it_came_from(app: Celery, exchange: str, key: str, queue: str) -> None:
    options = with_delay(app, {"exchange": exchange, "routing_key": key}, 0.4)
    assert (options["queue"].name, options["queue"].routing_key) == (queue, f"etcdlock.{queue}")
    assert options["queue"].exchange.type == "topic"
    assert options["countdown"] == 1, "RabbitMQ's delays are whole seconds, and at least one"
    assert app.amqp.queues[queue].routing_key != options["queue"].routing_key, "the app's own queue is as it was"


@pytest.mark.parametrize("info", [None, {}, {"exchange": "", "routing_key": "classic"}, {"routing_key": None}])
def test_elsewhere_the_worker_keeps_it_as_always(app: Celery, info: dict[str, Any] | None) -> None:
    assert with_delay(app, info, 0.4) == {"countdown": 0.4}


def test_where_the_queue_cannot_be_bound_the_worker_keeps_it(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "celery_etcdlock")
    monkeypatch.setattr(app, "_pool", Pool(OSError("no broker")))
    assert with_delay(app, {"exchange": "", "routing_key": "first"}, 0.4) == {"countdown": 0.4}
    assert "quorum queue 'first' can't be bound for delays" in caplog.text


def test_a_time_limit_that_strikes_meanwhile_is_not_swallowed(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_pool", Pool(SoftTimeLimitExceeded()))
    with pytest.raises(SoftTimeLimitExceeded):
        with_delay(app, {"exchange": "", "routing_key": "first"}, 0.4)
