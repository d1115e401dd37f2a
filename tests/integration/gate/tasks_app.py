"""Tasks that wait for each other's locks, in every way that a message can wait."""

from __future__ import annotations

import json
import os
import time

from celery import Celery

from celery_etcdlock import SingletonTask, current_lock

app = Celery(os.environ["TEST_APP_NAME"], broker=os.environ["TEST_BROKER"], backend=os.environ["TEST_BACKEND"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue=os.environ["TEST_APP_NAME"],
    worker_enable_remote_control=bool(os.environ.get("TEST_REMOTE_CONTROL")),
    **json.loads(os.environ.get("TEST_SETTINGS", "{}")),
)


def body(number: int, seconds: float) -> int:
    lock = current_lock()
    for event in ("enter", "exit"):
        facts = {"at": time.monotonic(), "event": event, "name": lock.name, "token": lock.fencing_token}
        with open(os.environ["TEST_LOG"], "a") as log:
            log.write(json.dumps({**facts, "number": number}) + "\n")
        ends_at = time.monotonic() + seconds
        while event == "enter" and time.monotonic() < ends_at and not os.path.exists(os.environ["TEST_LOG"] + ".end"):
            time.sleep(0.005)
    return number


@app.task(base=SingletonTask, on_conflict="wait", unique_on=["key"], shared=False)
def waits(key: str, number: int = 0, seconds: float = 0.0) -> int:
    return body(number, seconds)


@app.task(base=SingletonTask, on_conflict="retry", unique_on=["key"], shared=False)
def retries(key: str, number: int = 0, seconds: float = 0.0) -> int:
    return body(number, seconds)


@app.task(base=SingletonTask, on_conflict="join", unique_on=["key"], shared=False)
def joins(key: str, number: int = 0, seconds: float = 0.0) -> int:
    return body(number, seconds)


@app.task(base=SingletonTask, on_conflict="wait", wait_timeout=2.0, unique_on=["key"], shared=False)
def impatient(key: str, number: int = 0, seconds: float = 0.0) -> int:
    return body(number, seconds)


@app.task(base=SingletonTask, on_conflict="retry", unique_on=["key"], rate_limit="2/s", shared=False)
def limited(key: str, number: int = 0, seconds: float = 0.0) -> int:
    return body(number, seconds)


@app.task(shared=False)
def plain() -> str:
    return "plain"
