"""The same app with celery-etcdlock, and a task whose every number is a lock of its own."""

from __future__ import annotations

import os

from benchmarks.worker_apps.plain import app
from celery_etcdlock import singleton_task

app.conf.etcdlock_endpoints = os.environ["BENCH_ETCD"]


@singleton_task(app=app, name="locked", unique_on=["number"])
def locked(number: int) -> None:
    """Does nothing, under a lock."""


@singleton_task(app=app, name="called_once", unique_on=["number"], lock="until_executed")
def called_once(number: int) -> None:
    """Does nothing; its lock is taken when it is called."""


call = called_once.delay
