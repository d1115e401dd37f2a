"""OpenTelemetry: the spans that its instrumentation makes of a plain task, it makes of a locked one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from celery_etcdlock import singleton_task
from tests.companions.packages import package
from tests.unit.tasks.lab import Lab, run_message

instrumentation = package("opentelemetry.instrumentation.celery")
sdk = package("opentelemetry.sdk.trace")
exporting = package("opentelemetry.sdk.trace.export")
in_memory = package("opentelemetry.sdk.trace.export.in_memory_span_exporter")


@pytest.fixture
def spans() -> Iterator[Any]:
    exporter = in_memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(exporting.SimpleSpanProcessor(exporter))
    instrumentor = instrumentation.CeleryInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()


def run(lab: Lab, task: Any, spans: Any) -> list[tuple[str, str, Any]]:
    spans.clear()
    _, message = lab.publish(task)
    run_message(lab.app, message)
    return [
        (span.name.replace(task.name, "TASK"), span.status.status_code.name, span.attributes.get("celery.state"))
        for span in spans.get_finished_spans()
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_as_without_us(lab: Lab, spans: Any, fails: bool) -> None:
    def body() -> None:
        lab.body()
        if fails:
            raise ValueError("on purpose")

    plain = run(lab, lab.app.task(name="plain", shared=False)(body), spans)
    locked = run(lab, singleton_task(app=lab.app, name="locked", shared=False)(body), spans)
    assert lab.bodies == ["UNLOCKED", "locked"]
    assert locked == plain
    assert ("run/TASK", "ERROR" if fails else "UNSET", "FAILURE" if fails else "SUCCESS") in locked
