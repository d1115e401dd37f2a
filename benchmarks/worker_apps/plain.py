"""An app without celery-etcdlock. Broker, results and etcd come from the environment."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks.worker_apps.memory import memory_kilobytes

app = Celery("bench_plain", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_RESULTS"])


@app.task(name="plain")
def plain(number: int) -> None:
    """Does nothing."""


call = plain.delay


@app.task(name="memory")
def memory() -> dict[str, int]:
    """What the child that runs it uses."""
    return memory_kilobytes()
