"""Locks in tests: put them into memory or into a test's own etcd, hold one, and ask whether one is held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec

from celery import Task

from celery_etcdlock.app.etcd_locks import EtcdLocks, locks_at
from celery_etcdlock.locking.lock_holder import describe_holder
from celery_etcdlock.standalone.etcd_lock import EtcdLock
from celery_etcdlock.tasks.singleton_task import SingletonTask

P = ParamSpec("P")


@contextmanager
def use_locks(*endpoints: str) -> Iterator[None]:
    """All locks of this process are at ``endpoints`` during the block, whatever the apps' settings say.

    ``use_locks("memory://")`` gives each app an empty store in memory, ``use_locks(server.endpoint)`` a real etcd
    without TLS or users. Other processes, such as workers that a test starts, go by their own settings.
    """
    if not endpoints:
        raise ValueError('name at least one endpoint: use_locks("memory://") or use_locks(etcd_server.endpoint)')
    with locks_at(endpoints):
        yield


def hold(task: Task[P, Any], *args: P.args, **kwargs: P.kwargs) -> EtcdLock:
    """Hold the lock that ``task`` takes for these arguments, as if another process ran it now.

    Of a task with ``lock_limit=N`` it is one of N holders; of one with several locks it holds all.
    ``with hold(sync, account_id=1):`` makes every call of ``sync`` with that key a conflict. Raises ``LockConflict``
    when the lock is held already, and ``TypeError`` for a task that takes no lock.
    """
    locks, names = _locks_of(task, args, kwargs)
    return locks.lock(names, limit=task.lock_limit)  # type: ignore[attr-defined]


def assert_locked(task: Task[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
    """Fail unless somebody holds the lock that ``task`` takes for these arguments."""
    __tracebackhide__ = True
    locks, names = _locks_of(task, args, kwargs)
    for name in names:
        if not locks.holders(name):
            raise AssertionError(f"lock {name!r} is free, and should be held")


def assert_free(task: Task[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
    """Fail if somebody holds the lock that ``task`` takes for these arguments, and say who."""
    __tracebackhide__ = True
    locks, names = _locks_of(task, args, kwargs)
    for name in names:
        holders = locks.holders(name)
        if holders:
            raise AssertionError(f"lock {name!r} should be free, and is held by {describe_holder(holders)}")


def _locks_of(task: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[EtcdLocks, tuple[str, ...]]:
    """``task`` may be Celery's proxy of a task that isn't made yet."""
    if not isinstance(task, SingletonTask):
        name = getattr(task, "name", None) or repr(task)
        raise TypeError(f"{name} takes no lock: it isn't a SingletonTask (@singleton_task or base=SingletonTask)")
    return EtcdLocks.from_app(task.app), task._lock_names(tuple(args), kwargs)
