"""A task's lock from Python: who holds it, its release, and holding it yourself."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from celery_etcdlock.app.celery_settings import host_name
from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.core.operations import AwaitChange
from celery_etcdlock.core.ownership import Key, owners
from celery_etcdlock.core.task_options import TaskOptions
from celery_etcdlock.locking.lock_holder import LockHolder
from celery_etcdlock.locking.outcomes import Claim
from celery_etcdlock.standalone import argument_checks
from celery_etcdlock.standalone.etcd_lock import EtcdLock


class TaskLock:
    """The lock, or locks, that a call of a task takes. By ``task.lock_for(...)`` or ``celery_etcdlock.lock_for``.

    Makes no request by itself. What asks the store raises ``LockUnavailable``.
    """

    def __init__(self, locks: EtcdLocks, names: Sequence[str], options: TaskOptions) -> None:
        self._locks = locks
        #: The locks' names; most tasks have one.
        self.names = tuple(names)
        self._options = options

    @property
    def name(self) -> str:
        """The lock's name; of several, all of them."""
        return ", ".join(self.names)

    def locked(self) -> bool:
        """Whether anybody holds it: a task that runs, a message that was published with it, or somebody by hand."""
        return self.hold().locked()

    @property
    def holder(self) -> LockHolder | None:
        """Who holds it now: who, since when, for what; ``None`` if nobody does."""
        return self.hold().holder

    def hold(self, *, wait_timeout: float | None = 0.0, note: str | None = None) -> EtcdLock:
        """The lock, to hold it oneself: ``with task.lock_for(7).hold(note="by hand"):``. See ``EtcdLocks.lock``."""
        return self._locks.lock(
            list(self.names),
            wait_timeout=wait_timeout,
            lock_ttl=self._options.lock_ttl,
            limit=self._options.lock_limit,
            note=note,
        )

    def release(self, *, timeout: float = 60.0, force: bool = False) -> bool:
        """Free it, as ``celery etcdlock release`` does. Returns whether those who held it don't any more.

        The holder is asked to release it. Its process learns that within a third of the lock's TTL and interrupts the
        task with ``LockLost``. This waits up to ``timeout`` seconds for the release. With ``force`` the lock is free at
        once, and a holder that still runs does so beside the next one until it finds out. A lock that nobody renews,
        such as that of a message that hasn't started, can only be freed by ``force``.
        """
        ends_at = time.monotonic() + argument_checks.wait_seconds(timeout, "timeout")
        manager = self._locks.manager
        held = [(name, key) for name in self.names for key in owners(manager.claims.look(name))]
        by = f"pid {os.getpid()} on {host_name()}"
        for name, key in held:
            if force:
                manager.claims.drop(Claim(name, key.token, key.mod_revision))
            else:
                manager.ask_to_release(name, key, by)
        return all(self._is_gone(name, key, ends_at) for name, key in held)

    def _is_gone(self, name: str, key: Key, ends_at: float) -> bool:
        """Wait for it. A key that was taken over meanwhile is gone, too."""
        manager = self._locks.manager
        while key in manager.keys(name):
            seconds_left = ends_at - time.monotonic()
            if seconds_left <= 0:
                return False
            manager.store.perform(AwaitChange(name, key.mod_revision, key.token), min(seconds_left, 15.0))
        return True

    def __repr__(self) -> str:
        return f"<TaskLock {self.name!r}>"


def by_message(task_name: str) -> TypeError:
    """The error for a task whose messages are locked each by its id."""
    return TypeError(
        f"{task_name} has no lock of its arguments: etcdlock_dedup locks each of its messages by the message's id, as "
        'the lock "task_id:{id}"'
    )
