"""One call of a locked task, as all parts of its execution see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import Task

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.core.key_kinds import is_position
from celery_etcdlock.core.lifetimes import Lifetime
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.task_options import TaskOptions
from celery_etcdlock.errors import EtcdLockError
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.outcomes import Conflict
from celery_etcdlock.tasks.entry.caller import Call

#: Of the names of locks that are one message's.
MESSAGE_PREFIX = "task_id:"


@dataclass(frozen=True)
class ExecutionContext:
    """``names``: of the locks, which take the arguments and so may raise. ``once``: each message runs once."""

    task: Task[Any, Any]
    options: TaskOptions
    call: Call
    locks: EtcdLocks
    names: Callable[[], tuple[str, ...]]
    once: bool = False

    @property
    def label(self) -> str:
        """The task's name and id, for the log; the context itself has arguments, which must not get there."""
        return f"{self.task.name}[{self.call.delivery.task_id}]"

    @property
    def lifetime(self) -> Lifetime:
        return self.options.lifetime

    @property
    def manager(self) -> LockManager:
        return self.locks.manager

    @property
    def record(self) -> Record:
        try:
            about = getattr(self.names(), "about", None)
        except EtcdLockError:
            about = None  # where it matters, the names are asked for
        return self.locks.record(self.call.delivery, self.task.name, self.options.lock_limit, about)

    def related_key(self, conflict: Conflict) -> tuple[Key, Delivery] | None:
        """The key that is of this message and precedes it, and whose it is: not its own queue position."""
        for key in conflict.keys:
            holder = None if key.record is None or is_position(key) else key.record.delivery
            if holder is not None and holder.task_id == self.call.delivery.task_id:
                return key, holder
        return None
