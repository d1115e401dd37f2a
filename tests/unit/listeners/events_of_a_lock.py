"""The events of one lock's life, for tests of the listeners."""

from __future__ import annotations

from celery_etcdlock.core.events import (
    LockAcquired,
    LockConflicted,
    LockReleased,
    LockWaiting,
    LockWasLost,
    TaskDeduplicated,
)
from celery_etcdlock.core.record import Delivery, Record

OWNER = Record(Delivery("owner-id"), "proj.sync", "host", 7, 1.0)
OTHER = Record(Delivery("other-id"), "proj.sync", "host", 8, 2.0)

ACQUIRED = LockAcquired("proj.sync:1", OWNER, 41, 0.25)
RELEASED = LockReleased("proj.sync:1", OWNER, 41, 3.0)
LOST = LockWasLost("proj.sync:1", OWNER, 41, "its lease ended")
CONFLICTED = LockConflicted("proj.sync:1", OTHER, OWNER)
WAITING = LockWaiting("proj.sync:1", OTHER, OWNER)
DEDUPLICATED = TaskDeduplicated("proj.sync:1", OTHER, "held by owner-id")
