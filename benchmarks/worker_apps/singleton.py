"""celery-singleton: taken when the task is called, released by the worker."""

from __future__ import annotations

import os

from celery_singleton import Singleton  # type: ignore[import-not-found,unused-ignore]

from benchmarks.worker_apps.plain import app

app.conf.singleton_backend_url = os.environ["BENCH_LOCKS"]


@app.task(name="singleton", base=Singleton, lock_expiry=3600)
def singleton(number: int) -> None:
    """Does nothing."""


call = singleton.delay
