"""The demo's Celery app and its three tasks: a singleton, one lock per argument, and one whose worker gets killed.

``DEMO_WITHOUT_LOCK=1`` makes them plain tasks, to see that the demo notices when two run at once.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.signals import worker_ready
from kombu.transport import TRANSPORT_ALIASES

from celery_etcdlock import NotLocked, SingletonTask, current_lock
from examples.demo.journal import Journal

#: Seconds after which Redis gives out again a message that nobody acknowledged. Celery's default is an hour.
REDELIVERY_SECONDS = 6
KILLED_LOCK_TTL_SECONDS = 3

TRANSPORT_ALIASES["demofiles"] = "examples.demo.files:Transport"

WITHOUT_LOCK = bool(os.environ.get("DEMO_WITHOUT_LOCK"))
folder = Path(os.environ["DEMO_FOLDER"])
journal = Journal(folder / "journal")

# etcd's address is in the environment too, as ETCDLOCK_ENDPOINTS, which celery_etcdlock reads by itself.
app = Celery("demo", broker=os.environ["DEMO_BROKER"], backend=os.environ["DEMO_RESULTS"])
app.conf.update(
    task_acks_late=True,  # a message is acknowledged after its body, so that a killed worker's comes again
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=True,
    task_publish_retry=False,
    broker_connection_retry_on_startup=True,
    etcdlock_timeout=2,
    broker_transport_options={
        "visibility_timeout": REDELIVERY_SECONDS,
        "unacked_restore_interval": 1,  # how often Celery looks for such messages; its default is seldom
        "unacked_restore_throttle": 1,
    },
)
if os.environ["DEMO_BROKER"].startswith("demofiles"):
    app.conf.broker_transport_options = {
        "data_folder_in": str(folder / "queue"),
        "data_folder_out": str(folder / "queue"),
        "processed_folder": str(folder / "processed"),
        "control_folder": str(folder / "control"),
        "store_processed": True,
        "polling_interval": 0.05,
    }

#: One argument for all three tasks, so that the demo can run without locks.
OPTIONS: dict[str, Any] = {"base": Task if WITHOUT_LOCK else SingletonTask, "bind": True}


@app.task(**OPTIONS, on_conflict="skip")
def rebuild_index(self: Any, seconds: float) -> None:
    """One at a time; the others are skipped."""
    work(self, "rebuild_index", seconds)


@app.task(**OPTIONS, unique_on=["account"], on_conflict="retry")
def sync(self: Any, account: str, number: int, seconds: float) -> None:
    """One at a time for each account; the others come back later."""
    work(self, f"sync {account}", seconds)


@app.task(**OPTIONS, lock_ttl=KILLED_LOCK_TTL_SECONDS, unique_on=["book"], on_conflict="retry")
def close_book(self: Any, book: str, seconds: float) -> None:
    """The one whose worker is killed."""
    work(self, f"close_book {book}", seconds)


def work(task: Any, key: str, seconds: float) -> None:
    """Pretends to work, and notes when it began and ended."""
    try:
        token = current_lock().fencing_token
    except NotLocked:
        token = 0
    # One slot of a worker has one process: its name says which worker it is.
    worker = str(task.request.hostname).partition("@")[0]
    facts = {"key": key, "worker": worker, "call": task.request.id, "token": token, "pid": os.getpid()}
    journal.note("enter", **facts)
    try:
        time.sleep(seconds)
        if not WITHOUT_LOCK:
            current_lock().check()
    finally:
        journal.note("exit", **facts)


@worker_ready.connect
def note_ready(sender: Any, **_: Any) -> None:
    journal.note("ready", worker=str(sender.hostname).partition("@")[0], pid=os.getpid())
