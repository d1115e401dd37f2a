"""Every LockStore that there is, empty, under one fixture."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.etcd_store import EtcdStore
from celery_etcdlock.locking.group_commit import GroupCommit
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.memory_store import MemoryStore

_prefixes = itertools.count()


@pytest.fixture(params=["memory", "redis", "etcd", "etcd, group commit"])
def new_store(request: pytest.FixtureRequest) -> Iterator[Callable[[], LockStore]]:
    """Makes clients of one store that is empty at first; each call gives one with connections of its own."""
    if request.param == "memory":
        memory = MemoryStore()
        yield lambda: memory
        return
    if request.param == "redis":
        yield from _redis(request.getfixturevalue("redis").url(3))
        return
    server = request.getfixturevalue("etcd")
    prefix = f"/contract-{next(_prefixes)}/"
    opened: list[LockStore] = []
    shared = request.param != "etcd"

    def open_store() -> LockStore:
        store = EtcdStore(EtcdClient(server.endpoint), prefix)
        opened.append(GroupCommit(store) if shared else store)
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


def _redis(url: str) -> Iterator[Callable[[], LockStore]]:
    redis = pytest.importorskip("redis")
    prefix = f"/contract-{next(_prefixes)}/"
    from celery_etcdlock.locking.redis_store import RedisStore

    opened: list[LockStore] = []

    def open_store() -> LockStore:
        opened.append(RedisStore(redis.ConnectionPool.from_url(url), prefix))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def store(new_store: Callable[[], LockStore]) -> LockStore:
    return new_store()
