"""The port: what a lock store must offer. Every store passes ``tests/contract``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from celery_etcdlock.core.operations import PlaceOperation, StoreOperation
from celery_etcdlock.core.replies import StoreReply


class LockStore(Protocol):
    """A strictly ordered store of locks, sessions and leases.

    ``perform`` does one operation (``core.operations`` says what each one means and what it is answered with)
    atomically, within ``timeout_seconds``. It never blocks longer, may be called from many threads at once, and raises
    ``LockUnavailable`` when it has no usable answer; ``maybe_applied`` on that error must be true whenever the
    operation may have taken effect or still may. In a forked child it works and leaves its parent's connections alone.
    """

    def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply: ...

    def close(self) -> None:
        """Close connections. The store may be used again afterwards."""


class GroupingStore(LockStore, Protocol):
    """A store that can do several operations on different lock names in one request."""

    #: How many of them go together at most. May fall when the store learns of a lower limit.
    most_together: int

    def perform_together(self, operations: Sequence[PlaceOperation], timeout_seconds: float) -> list[StoreReply]:
        """As ``perform`` for each, and none of them twice. No lock name may occur twice.

        An error is that of all: with ``maybe_applied`` each of them may have taken effect, without it none has.
        """
