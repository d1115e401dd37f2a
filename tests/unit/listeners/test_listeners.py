"""Signals, the log, Prometheus and OpenTelemetry, each fed with events as the manager tells them."""

from __future__ import annotations

import itertools
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured, SoftTimeLimitExceeded

from celery_etcdlock import EtcdLocks
from celery_etcdlock.core.events import LockEvent
from celery_etcdlock.errors import LockLost
from celery_etcdlock.listeners import Listeners, find_listener
from celery_etcdlock.locking.event_log import log_event
from celery_etcdlock.signals import lock_acquired, lock_conflict, lock_lost, lock_released, send_signal
from tests.unit.listeners.events_of_a_lock import ACQUIRED, CONFLICTED, DEDUPLICATED, LOST, RELEASED, WAITING

_names = itertools.count()
heard: list[LockEvent] = []


def hear(event: LockEvent) -> None:
    heard.append(event)


def thrown_in(error: LockLost) -> LockLost:
    error.thrown_in = True
    return error


def fail(event: LockEvent) -> None:
    raise RuntimeError("on purpose")


@pytest.fixture
def app() -> Iterator[Celery]:
    heard.clear()
    app = Celery(f"listeners{next(_names)}", broker="memory://", set_as_current=False)
    app.conf.etcdlock_endpoints = "memory://"
    yield app
    EtcdLocks.from_app(app).close()


class TestSignals:
    def test_each_has_the_task_as_sender_and_the_facts_as_keywords(self) -> None:
        got: list[tuple[Any, ...]] = []

        def receive(sender: str, **facts: Any) -> None:
            signal = facts.pop("signal")
            got.append((signal.name, sender, facts))

        signals = (lock_acquired, lock_released, lock_conflict, lock_lost)
        for each in signals:
            each.connect(receive)
        try:
            for event in (ACQUIRED, RELEASED, CONFLICTED, LOST, WAITING, DEDUPLICATED):
                send_signal(event)
        finally:
            for each in signals:
                each.disconnect(receive)
        assert [(name, sender) for name, sender, _ in got] == [
            ("lock_acquired", "proj.sync"),
            ("lock_released", "proj.sync"),
            ("lock_conflict", "proj.sync"),
            ("lock_lost", "proj.sync"),
        ]
        assert got[0][2] == {
            "name": "proj.sync:1",
            "task_id": "owner-id",
            "record": ACQUIRED.record,
            "fencing_token": 41,
            "waited_seconds": 0.25,
        }
        assert got[2][2]["task_id"] == "other-id"
        assert got[2][2]["holder"] is CONFLICTED.holder

    def test_every_fact_that_is_sent_is_declared(self) -> None:
        def receive(**facts: Any) -> None:
            signal = facts.pop("signal")
            assert {*facts} - {"sender"} == {*signal.providing_args}
            seen.append(signal.name)

        seen: list[str] = []
        signals = (lock_acquired, lock_released, lock_conflict, lock_lost)
        for each in signals:
            each.connect(receive)
        try:
            for event in (ACQUIRED, RELEASED, CONFLICTED, LOST):
                send_signal(event)
        finally:
            for each in signals:
                each.disconnect(receive)
        assert len(seen) == 4  # a receiver that failed its assert would be missing

    def test_a_receiver_that_raises_blocks_neither_the_others_nor_the_release(self, app: Celery) -> None:
        got: list[str] = []

        def raises(**_: Any) -> None:
            raise RuntimeError("on purpose")

        def receives(name: str, **_: Any) -> None:
            got.append(name)

        lock_released.connect(raises)
        lock_released.connect(receives)
        try:
            with EtcdLocks.from_app(app).lock("a"):
                pass
            with EtcdLocks.from_app(app).lock("a"):
                pass
        finally:
            lock_released.disconnect(raises)
            lock_released.disconnect(receives)
        assert got == ["a", "a"]

    @pytest.mark.parametrize("interruption", [SoftTimeLimitExceeded(), thrown_in(LockLost("outer"))])
    def test_what_interrupts_the_task_in_a_receiver_gets_through(self, app: Celery, interruption: Exception) -> None:
        """A signal's handler raises it out of whatever runs, and Celery catches what receivers raise."""

        def alarm(number: int, frame: object) -> None:
            raise interruption

        def is_interrupted(**_: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGALRM)

        before = signal.signal(signal.SIGALRM, alarm)
        lock_acquired.connect(is_interrupted)
        try:
            with pytest.raises(type(interruption)), EtcdLocks.from_app(app).lock("a"):
                pytest.fail("the body runs on")
        finally:
            lock_acquired.disconnect(is_interrupted)
            signal.signal(signal.SIGALRM, before)
        with EtcdLocks.from_app(app).lock("a"):  # it is free
            pass


class TestSetting:
    def test_functions_and_import_paths_hear_of_every_lock(self, app: Celery) -> None:
        app.conf.etcdlock_listeners = [fail, f"{__name__}:hear"]
        with EtcdLocks.from_app(app).lock("a", wait_timeout=1):
            pass
        # By its path the module may be another copy of this one, as pytest imports it.
        events = sys.modules[__name__].heard
        assert [type(event).__name__ for event in events] == ["LockAcquired", "LockReleased"]

    @pytest.mark.parametrize("entry", ["promtheus", "no.such.module:x", "os.path:nothing", "os.path:sep"])
    def test_what_can_not_be_found_is_an_error_that_names_it(self, app: Celery, entry: str) -> None:
        app.conf.etcdlock_listeners = [entry]
        with pytest.raises(ImproperlyConfigured, match=f"etcdlock_listeners: '{entry}'"):
            _ = EtcdLocks.from_app(app).manager

    def test_what_is_no_list_is_an_error(self, app: Celery) -> None:
        app.conf.etcdlock_listeners = 5
        with pytest.raises(ImproperlyConfigured, match="etcdlock_listeners must be a list"):
            _ = EtcdLocks.from_app(app).settings

    def test_one_that_raises_does_not_stop_the_others(self) -> None:
        heard.clear()
        Listeners([fail, hear])(ACQUIRED)
        assert heard == [ACQUIRED]

    def test_one_that_looks_at_a_lost_lock_interrupts_nobody(self) -> None:
        def looks(event: LockEvent) -> None:
            raise LockLost(event.name)  # as ``current_lock().check()`` does

        heard.clear()
        Listeners([looks, hear])(ACQUIRED)
        assert heard == [ACQUIRED]


class TestLog:
    def test_lines_carry_their_facts_as_fields(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG, "celery_etcdlock"):
            for event in (ACQUIRED, RELEASED, CONFLICTED, WAITING, DEDUPLICATED, LOST):
                log_event(event)
        fields = [vars(line) for line in caplog.records]
        assert [line["lock_event"] for line in fields] == [
            *("acquired", "released", "conflict", "waiting", "deduplicated", "lost"),
        ]
        assert {line["lock_name"] for line in fields} == {"proj.sync:1"}
        assert {line["task_name"] for line in fields} == {"proj.sync"}
        assert fields[0]["fencing_token"] == 41
        assert fields[2]["lock_holder"] == "owner-id"
        assert fields[5]["levelname"] == "ERROR"

    def test_what_happens_with_every_task_is_silent_by_default(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "celery_etcdlock"):
            for event in (ACQUIRED, RELEASED, CONFLICTED):
                log_event(event)
        assert caplog.records == []


class TestPrometheus:
    def test_counts_by_task(self) -> None:
        prometheus = pytest.importorskip("prometheus_client")
        from celery_etcdlock.listeners.prometheus import PrometheusListener

        registry = prometheus.CollectorRegistry()
        listener = PrometheusListener(registry)

        def value(name: str) -> float | None:
            return registry.get_sample_value(f"celery_etcdlock_{name}", {"task": "proj.sync"})

        listener(ACQUIRED)
        assert value("held") == 1
        for event in (CONFLICTED, DEDUPLICATED, RELEASED, ACQUIRED, LOST):
            listener(event)
        assert value("held") == 0
        names = ("acquired_total", "released_total", "conflicts_total", "lost_total", "deduplicated_total")
        assert [value(name) for name in names] == [2, 1, 1, 1, 1]
        assert value("wait_seconds_sum") == 0.5
        assert value("held_seconds_sum") == 3.0

    def test_is_made_once_for_all_managers_of_a_process(self) -> None:
        pytest.importorskip("prometheus_client")
        assert find_listener("prometheus") is find_listener("prometheus")


class TestOpenTelemetry:
    def test_a_hold_is_a_span_and_so_is_a_wait(self) -> None:
        pytest.importorskip("opentelemetry.sdk")
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        from celery_etcdlock.listeners.opentelemetry import OpenTelemetryListener

        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        listener = OpenTelemetryListener(provider)
        with provider.get_tracer("test").start_as_current_span("run/proj.sync") as around:
            before = time.time_ns()
            for event in (CONFLICTED, WAITING, ACQUIRED, RELEASED, ACQUIRED, LOST, DEDUPLICATED):
                listener(event)
        spans = exporter.get_finished_spans()
        names = [span.name for span in spans]
        wait, hold = "lock wait proj.sync", "lock proj.sync"
        assert names == [wait, hold, wait, hold, "run/proj.sync"]
        assert all(span.parent.span_id == around.get_span_context().span_id for span in spans[:-1])
        assert spans[1].attributes["etcdlock.fencing_token"] == 41
        assert spans[1].attributes["etcdlock.name"] == "proj.sync:1"
        assert spans[0].end_time - spans[0].start_time == 250_000_000
        assert spans[0].end_time >= before
        assert [span.status.is_ok for span in spans[:4]] == [True, True, True, False]
        assert [event.name for event in spans[4].events] == [
            "etcdlock.conflict",
            "etcdlock.waiting",
            "etcdlock.deduplicated",
        ]
