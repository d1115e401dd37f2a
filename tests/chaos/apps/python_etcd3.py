"""python-etcd3's ``Lock`` around a task's body, as its documentation uses it. It isn't renewed by itself."""

from __future__ import annotations

import os
from typing import Any

import etcd3

from tests.chaos.apps.common import DURABLE, LANE, STORE, TTL_SECONDS, new_app
from tests.chaos.body import inside

app = new_app()
_clients: dict[int, Any] = {}


def client() -> Any:
    """One of this process's own: grpc doesn't survive a fork."""
    if os.getpid() not in _clients:
        host, port = STORE.split(",")[0].rsplit(":", 1)
        _clients[os.getpid()] = etcd3.client(host=host, port=int(port), timeout=1.5)
    return _clients[os.getpid()]


def run(task: Any, seconds: float) -> bool:
    lock = client().lock(LANE, ttl=TTL_SECONDS)
    if not lock.acquire(timeout=0.3):
        return False
    try:
        inside(task.request.id, seconds)
    finally:
        lock.release()
    return True


@app.task(name="work", bind=True, **DURABLE)
def work(self: Any, seconds: float) -> None:
    run(self, seconds)


@app.task(name="keep", bind=True, max_retries=None, default_retry_delay=0.5, **DURABLE)
def keep(self: Any, seconds: float) -> None:
    try:
        done = run(self, seconds)
    except etcd3.exceptions.Etcd3Exception as error:
        raise self.retry(exc=error) from error
    if not done:
        raise self.retry()
