"""celery-singleton: the lock is taken when the task is sent."""

from __future__ import annotations

from typing import Any

from celery_singleton import Singleton

from tests.chaos.apps.common import DURABLE, STORE, TTL_SECONDS, new_app
from tests.chaos.body import inside

app = new_app()
app.conf.singleton_backend_url = STORE


@app.task(name="work", base=Singleton, bind=True, lock_expiry=TTL_SECONDS, **DURABLE)
def work(self: Any, seconds: float) -> None:
    inside(self.request.id, seconds)


keep = work
