"""An app that knows nothing of locks, with tasks of every kind. Nothing of ours is imported here."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery, Task

app = Celery(os.environ["TEST_APP_NAME"], broker=os.environ["TEST_BROKER"], backend=os.environ["TEST_BACKEND"])
app.conf.update(
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    task_default_queue=os.environ["TEST_APP_NAME"],
    worker_enable_remote_control=False,
    **json.loads(os.environ.get("TEST_SETTINGS", "{}")),
)


def body(name: str, seconds: float) -> str:
    for event in ("enter", "exit"):
        line = json.dumps({"at": time.monotonic(), "event": event, "name": name, "token": 0}) + "\n"
        with open(os.environ["TEST_LOG"], "a") as log:
            log.write(line)
        ends_at = time.monotonic() + seconds
        while event == "enter" and time.monotonic() < ends_at and not os.path.exists(os.environ["TEST_LOG"] + ".end"):
            time.sleep(0.01)
    return name


class Counting(Task):
    """A base class of the user's own."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return [super().__call__(*args, **kwargs), self.calls]


@app.task(name="reports.daily", shared=False)
def daily(day: str, seconds: float = 0.0) -> str:
    return body(f"daily {day}", seconds)


@app.task(name="reports.based", base=Counting, bind=True, shared=False)
def based(self: Any, seconds: float = 0.0) -> str:
    return body(f"{self.name} {self.request.retries}", seconds)


@app.task(name="mail.send", shared=False)
def send(seconds: float = 0.0) -> str:
    return body("mail", seconds)


@app.task(name="mail.retry", bind=True, max_retries=3, shared=False)
def retry(self: Any, times: int) -> int:
    body(f"retry {self.request.retries}", 0.0)
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return int(self.request.retries)
