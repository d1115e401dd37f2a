"""What the pages' code blocks take for granted: an app, a database, a task. Imported by each when it is checked."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as _datetime
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, shared_task

import celery_etcdlock
from celery_etcdlock import (
    EtcdLocks,
    LockConflict,
    LockLost,
    LockUnavailable,
    SingletonTask,
    current_lock,
    lock_for,
    singleton_task,
)

__all__ = [
    "Account",
    "Any",
    "Celery",
    "EtcdLocks",
    "Feed",
    "LockConflict",
    "LockLost",
    "LockUnavailable",
    "SingletonTask",
    "app",
    "asyncio",
    "beat_init",
    "celery_etcdlock",
    "client",
    "connection",
    "current_lock",
    "datetime",
    "db",
    "lock_for",
    "locks",
    "memcache_lock",
    "prometheus_client",
    "pytest",
    "shared_task",
    "singleton_task",
    "sync",
]

import prometheus_client
from celery.signals import beat_init

datetime = _datetime.datetime
app = Celery("proj", broker="memory://", backend="cache+memory://")
app.conf.etcdlock_endpoints = "memory://"
app.set_current()
locks = EtcdLocks.from_app(app)


@singleton_task(app=app, unique_on=["account_id"])
def sync(account_id: int, full: bool = False) -> int:
    return account_id


class _Anything:
    """Takes every call, attribute and comparison."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self

    def __getitem__(self, key: object) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __await__(self) -> Any:
        yield from ()
        return self


db: Any = _Anything()
connection: Any = _Anything()
client: Any = _Anything()
Feed: Any = _Anything()
Account: Any = _Anything()


@contextlib.contextmanager
def memcache_lock(lock_id: str, oid: str) -> Iterator[bool]:
    yield True
