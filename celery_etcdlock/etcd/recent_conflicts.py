"""Lock names that were refused lately: the next try for one of them asks before it writes.

A try-lock is a transaction that would write, so etcd puts it into its log and syncs it even when it is refused. A flood
of duplicates would cost the cluster a write each. The same transaction without its writes is a linearizable read, which
costs none: when it is refused, so would the real one have been at that moment, and its answer is the real one's. When
it isn't, the real one follows: one read more, for the first try after the lock became free.
"""

from __future__ import annotations

import time

from celery_etcdlock.etcd.key_layout import Fields

LATELY_SECONDS = 1.0
MOST_NAMES = 1024


class RecentConflicts:
    """By lock name, until when a try asks first. Plain attributes: a race costs a read, or a write."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def lately(self, name: str) -> bool:
        until = self._until.get(name)
        return until is not None and time.monotonic() < until

    def note(self, name: str, refused: bool) -> None:
        if refused:
            if len(self._until) >= MOST_NAMES:
                self._until.clear()
            self._until[name] = time.monotonic() + LATELY_SECONDS
        elif self._until:
            self._until.pop(name, None)


def rehearsal(request: Fields, seen: Fields) -> Fields:
    """The transaction with the read ``seen`` in place of what it would write."""
    return request | {"success": [seen]}
