"""The cache lock of Celery's cookbook ("Ensuring a task is only executed one at a time"), over redis-py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from tests.chaos.apps.common import DURABLE, LANE, STORE, TTL_SECONDS, new_app
from tests.chaos.body import inside

app = new_app()
cache = redis.Redis.from_url(STORE, socket_timeout=1.5)


@contextmanager
def cache_lock(owner: str) -> Iterator[bool]:
    timeout_at = time.monotonic() + TTL_SECONDS - 1
    status = bool(cache.set(LANE, owner, nx=True, ex=TTL_SECONDS))
    try:
        yield status
    finally:
        # As there: an expired lock isn't deleted, for it may be somebody else's by now.
        if time.monotonic() < timeout_at and status:
            cache.delete(LANE)


@app.task(name="work", bind=True, **DURABLE)
def work(self: Any, seconds: float) -> None:
    with cache_lock(app.oid) as acquired:
        if acquired:
            inside(self.request.id, seconds)


@app.task(name="keep", bind=True, max_retries=None, default_retry_delay=0.5, **DURABLE)
def keep(self: Any, seconds: float) -> None:
    try:
        with cache_lock(app.oid) as acquired:
            if acquired:
                inside(self.request.id, seconds)
                return
    except redis.RedisError as error:
        raise self.retry(exc=error) from error
    raise self.retry()
