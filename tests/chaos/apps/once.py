"""celery-once: the lock is taken when the task is sent."""

from __future__ import annotations

from typing import Any

from celery_once import QueueOnce

from tests.chaos.apps.common import DURABLE, STORE, TTL_SECONDS, new_app
from tests.chaos.body import inside

app = new_app()
app.conf.ONCE = {
    "backend": "celery_once.backends.Redis",
    "settings": {"url": STORE, "default_timeout": TTL_SECONDS, "socket_timeout": 1.5},
}


@app.task(name="work", base=QueueOnce, bind=True, once={"keys": [], "graceful": True}, **DURABLE)
def work(self: Any, seconds: float) -> None:
    inside(self.request.id, seconds)


keep = work
