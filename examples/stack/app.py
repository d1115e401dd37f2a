"""The stack's Celery app. etcd's addresses come as ETCDLOCK_ENDPOINTS, which celery_etcdlock reads by itself."""

from __future__ import annotations

import os
import time

from celery import Celery

from celery_etcdlock import current_lock, singleton_task
from examples.stack.journal import Journal

app = Celery("stack", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.update(
    task_acks_late=True,  # a message is acknowledged after its body, so that a killed worker's comes again
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    beat_schedule={"a job that takes longer than its period": {"task": "report", "schedule": 2.0, "args": (3.0,)}},
)
if os.environ.get("STACK_QUEUE_TYPE"):
    app.conf.task_default_queue_type = os.environ["STACK_QUEUE_TYPE"]
    app.conf.broker_transport_options = {"confirm_publish": True}

journal = Journal(os.environ["STACK_JOURNAL"])


@singleton_task(app=app, name="report")
def report(seconds: float) -> None:
    """Fired by beat every 2 seconds, takes 3: the runs that would overlap are skipped."""
    work("report", seconds)


@singleton_task(app=app, name="rebuild_index")
def rebuild_index(seconds: float) -> None:
    """One at a time on all workers; the others are skipped."""
    work("rebuild_index", seconds)


@singleton_task(app=app, name="sync", unique_on=["account"], on_conflict="retry")
def sync(account: str, number: int, seconds: float) -> None:
    """One at a time for each account; the others come back later."""
    work(f"sync {account}", seconds)


def work(key: str, seconds: float) -> None:
    with journal.inside(key, current_lock().fencing_token):
        time.sleep(seconds)
        current_lock().check()
