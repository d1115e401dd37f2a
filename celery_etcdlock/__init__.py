"""Celery tasks that run one at a time, whatever dies, under etcd lease locks.

``singleton_task`` and ``SingletonTask`` make locked tasks, ``current_lock()`` is the lock of the running one, and
``EtcdLocks.from_app(app).lock("name")`` is a lock without a task.
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

#: Imported when they are first asked for: every ``celery`` command imports this package, for its own commands.
_HOMES = {
    "CurrentLock": "current",
    "EtcdLocks": "runtime",
    "SingletonTask": "task",
    "current_lock": "current",
    "singleton_task": "decorator",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"celery_etcdlock.tasks.{_HOMES[name]}"), name)
    return found
