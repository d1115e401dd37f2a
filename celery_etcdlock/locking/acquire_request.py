"""What a caller asks for who wants to hold locks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from celery_etcdlock.core.record import Record
from celery_etcdlock.locking.cancel_wait import WaitCancellation
from celery_etcdlock.locking.lock import Lock


class AcquireRequest(NamedTuple):
    """Own one lock, or all of several or none of them.

    With ``wait_seconds`` a caller who wants one lock waits in the order of arrival, until ``stop`` ends the wait as if
    its time were over; one who wants several doesn't wait. ``on_held`` is given each lock before the acquire returns,
    so that a caller whom a signal interrupts in between can't lose it. ``on_lost`` is called in another thread with
    each lock that is lost.
    """

    names: tuple[str, ...]
    #: What is stored: who holds the locks.
    record: Record
    ttl_seconds: int
    wait_seconds: float = 0.0
    on_held: Callable[[Lock], None] | None = None
    on_lost: Callable[[Lock], None] | None = None
    stop: WaitCancellation | None = None
