"""One call of a locked task, as all parts of its execution see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import Task

from celery_etcdlock.core.key_kinds import is_position
from celery_etcdlock.core.lifetimes import Lifetime
from celery_etcdlock.core.options import TaskOptions
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Kinship, Record
from celery_etcdlock.locking.claim import Conflict
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.tasks.call import Call
from celery_etcdlock.tasks.plan import LockPlan
from celery_etcdlock.tasks.runtime import EtcdLocks

__all__ = ["MESSAGE_PREFIX", "Run"]

#: Of the names of locks that are one message's.
MESSAGE_PREFIX = "task_id:"


@dataclass(frozen=True)
class Run:
    """``names``: of the locks, which take the arguments and so may raise."""

    task: Task[Any, Any]
    plan: LockPlan
    call: Call
    locks: EtcdLocks
    names: Callable[[], tuple[str, ...]]

    @property
    def options(self) -> TaskOptions:
        return self.plan.options

    @property
    def lifetime(self) -> Lifetime:
        return self.plan.options.lifetime

    @property
    def manager(self) -> LockManager:
        return self.locks.manager

    @property
    def record(self) -> Record:
        return self.locks.record(self.call.delivery, self.task.name, self.options.lock_limit)

    @property
    def ttl_seconds(self) -> int:
        return self.options.lock_ttl or self.locks.settings.ttl

    def kinship(self, key: Key) -> Kinship:
        return self.call.delivery.kinship(key.record.delivery if key.record is not None else None)

    def kin(self, conflict: Conflict) -> tuple[Kinship, Key | None]:
        """The key that is of this message and precedes it, if there is one: not its own queue position."""
        for key in conflict.keys:
            kinship = self.kinship(key)
            if kinship is not Kinship.STRANGER and not is_position(key):
                return kinship, key
        return Kinship.STRANGER, None
