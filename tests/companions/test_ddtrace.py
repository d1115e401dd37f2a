"""ddtrace: the spans that it makes of a plain task, it makes of a locked one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from celery_etcdlock import singleton_task
from tests.companions.packages import package
from tests.unit.tasks.lab import Lab, run_message

ddtrace = package("ddtrace")
patching = package("ddtrace.contrib.internal.celery.patch")
filters = package("ddtrace.trace")


@pytest.fixture
def spans() -> Iterator[list[Any]]:
    finished: list[Any] = []

    class Keeps(filters.TraceFilter):  # type: ignore[misc,name-defined]
        def process_trace(self, trace: Any) -> Any:
            finished.extend((span.name, span.resource, span.error) for span in trace)
            return None

    patching.patch()
    filters.tracer.configure(trace_processors=[Keeps()])
    yield finished
    patching.unpatch()


@pytest.mark.parametrize("fails", [False, True])
def test_as_without_us(spans: list[Any], fails: bool) -> None:
    lab = Lab()  # an app that is made once it is patched

    def body() -> None:
        lab.body()
        if fails:
            raise ValueError("on purpose")

    def run(task: Any) -> list[Any]:
        spans.clear()
        _, message = lab.publish(task)
        run_message(lab.app, message)
        return [(name, resource.replace(task.name, "TASK"), error) for name, resource, error in spans]

    plain = run(lab.app.task(name="plain", shared=False)(body))
    locked = run(singleton_task(app=lab.app, name="locked", shared=False)(body))
    assert lab.bodies == ["UNLOCKED", "locked"]
    assert locked == plain
    assert ("celery.run", "TASK", int(fails)) in locked
    lab.close()
