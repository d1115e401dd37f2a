"""Celery tasks that run one at a time, whatever dies, under etcd lease locks.

``singleton_task`` and ``SingletonTask`` make locked tasks, ``current_lock()`` is the lock of the running one, and
``EtcdLocks.from_app(app).lock("name")`` is a lock without a task.
"""

from celery_etcdlock.errors import (
    EtcdLockError,
    InvalidKey,
    InvalidOption,
    InvalidSetting,
    LockConflict,
    LockLost,
    LockUnavailable,
    NotLocked,
)
from celery_etcdlock.tasks.current import CurrentLock, current_lock
from celery_etcdlock.tasks.decorator import singleton_task
from celery_etcdlock.tasks.runtime import EtcdLocks
from celery_etcdlock.tasks.task import SingletonTask

__all__ = [
    "CurrentLock",
    "EtcdLockError",
    "EtcdLocks",
    "InvalidKey",
    "InvalidOption",
    "InvalidSetting",
    "LockConflict",
    "LockLost",
    "LockUnavailable",
    "NotLocked",
    "SingletonTask",
    "current_lock",
    "singleton_task",
]
