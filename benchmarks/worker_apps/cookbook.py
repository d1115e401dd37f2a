"""The lock of Celery's cookbook ("Ensuring a task is only executed one at a time"): Django's cache, here on Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from django.conf import settings  # type: ignore[import-not-found,unused-ignore]
from django.core.cache import cache  # type: ignore[import-not-found,unused-ignore]

from benchmarks.worker_apps.plain import app

LOCK_EXPIRE = 600
settings.configure(
    CACHES={
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": os.environ["BENCH_LOCKS"],
        }
    }
)


@contextmanager
def cache_lock(lock_id: str, owner: str) -> Iterator[bool]:
    """Added by one, deleted by it unless it may have run out."""
    timeout_at = monotonic() + LOCK_EXPIRE - 3
    added = cache.add(lock_id, owner, LOCK_EXPIRE)
    try:
        yield added
    finally:
        if monotonic() < timeout_at and added:
            cache.delete(lock_id)


@app.task(name="cookbook", bind=True)
def cookbook(self: Any, number: int) -> None:
    """Does nothing, under a lock."""
    with cache_lock(f"bench-{number}", self.request.id) as acquired:
        if not acquired:
            raise RuntimeError(f"bench-{number} is locked")
