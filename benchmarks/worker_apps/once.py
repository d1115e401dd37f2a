"""celery-once: taken when the task is called, released by the worker."""

from __future__ import annotations

import os

from celery_once import QueueOnce  # type: ignore[import-not-found,unused-ignore]

from benchmarks.worker_apps.plain import app

app.conf.ONCE = {
    "backend": "celery_once.backends.Redis",
    "settings": {"url": os.environ["BENCH_LOCKS"], "default_timeout": 3600},
}


@app.task(name="once", base=QueueOnce, once={"graceful": True})
def once(number: int) -> None:
    """Does nothing."""


call = once.delay
