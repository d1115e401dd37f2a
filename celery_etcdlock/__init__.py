"""Celery tasks that run one at a time, whatever dies, under etcd lease locks.

``singleton_task`` and ``SingletonTask`` make locked tasks, ``current_lock()`` is the lock of the running one, and
``lock_for`` the lock that a call of a task takes. ``EtcdLocks.from_app(app).lock("name")`` is a lock without a task,
``alock`` the same for asyncio.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from celery_etcdlock.app.etcd_locks import EtcdLocks
    from celery_etcdlock.locking.lock_holder import LockHolder
    from celery_etcdlock.standalone.async_etcd_lock import AsyncEtcdLock
    from celery_etcdlock.standalone.etcd_lock import EtcdLock
    from celery_etcdlock.standalone.held_lock import HeldLock
    from celery_etcdlock.tasks.decorator import singleton_task
    from celery_etcdlock.tasks.execution.current_lock import CurrentLock, current_lock
    from celery_etcdlock.tasks.lock_for import lock_for
    from celery_etcdlock.tasks.singleton_task import SingletonTask
    from celery_etcdlock.tasks.task_lock import TaskLock

__all__ = [
    "AsyncEtcdLock",
    "CurrentLock",
    "EtcdLock",
    "EtcdLockError",
    "EtcdLocks",
    "HeldLock",
    "InvalidKey",
    "InvalidOption",
    "InvalidSetting",
    "LockConflict",
    "LockHolder",
    "LockLost",
    "LockUnavailable",
    "NotLocked",
    "SingletonTask",
    "TaskLock",
    "current_lock",
    "lock_for",
    "singleton_task",
]

#: Imported when they are first asked for: every ``celery`` command imports this package, for its own commands.
_HOMES = {
    "AsyncEtcdLock": "standalone.async_etcd_lock",
    "CurrentLock": "tasks.execution.current_lock",
    "EtcdLock": "standalone.etcd_lock",
    "EtcdLocks": "app.etcd_locks",
    "HeldLock": "standalone.held_lock",
    "LockHolder": "locking.lock_holder",
    "SingletonTask": "tasks.singleton_task",
    "TaskLock": "tasks.task_lock",
    "current_lock": "tasks.execution.current_lock",
    "lock_for": "tasks.lock_for",
    "singleton_task": "tasks.decorator",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"celery_etcdlock.{_HOMES[name]}"), name)
    return found
