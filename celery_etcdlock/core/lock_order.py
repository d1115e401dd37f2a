"""In what order an operator reads locks: those that others wait for come first, then those held for longest."""

from __future__ import annotations

import math
from collections.abc import Iterable

from celery_etcdlock.core.lock_table import LockEntry


def contended_first(locks: Iterable[LockEntry]) -> list[LockEntry]:
    """Most waiters first, then the longest held; a holder whose record can't be read counts as held for longest."""
    return sorted(locks, key=lambda lock: (-lock.waiting, held_since(lock), lock.name))


def held_since(lock: LockEntry) -> float:
    """Unix time in seconds; 0 where no record says, and never where nobody holds it."""
    if not lock.owners:
        return math.inf
    records = [owner.key.record for owner in lock.owners[:1]]
    return records[0].since if records[0] is not None else 0.0
