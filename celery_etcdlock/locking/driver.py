"""Drives a sans-IO machine: sends its operations to a store and tells it the replies and the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from celery_etcdlock.core.operations import AwaitChange, Changed, Failed, Operation, Pause, Reply, StoreReply
from celery_etcdlock.core.protocol import Machine
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.store import LockStore

__all__ = ["drive"]

Outcome = TypeVar("Outcome")

#: A watch may die without a word (a half-open connection), so a waiter looks again at least this often, in seconds.
LONGEST_WATCH_SECONDS = 15.0


def drive(
    machine: Machine[Outcome],
    store: LockStore,
    clock: Clock,
    *,
    observe: Callable[[StoreReply], None] | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Outcome:
    """Run ``machine`` to its outcome. ``observe`` sees each of the store's replies before the machine does."""
    now = clock()
    step = machine.start(now)
    while True:
        reply = _reply(step, store, machine.answer_by - now, observe, sleep)
        now = clock()
        following = machine.on(reply, now)
        if not isinstance(following, Operation):
            return following
        step = following


def _reply(
    operation: Operation,
    store: LockStore,
    seconds_left: float,
    observe: Callable[[StoreReply], None] | None,
    sleep: Callable[[float], object],
) -> Reply:
    if isinstance(operation, Pause):
        sleep(max(0.0, min(operation.seconds, seconds_left)))
        return Changed()
    if seconds_left <= 0:
        return Failed(LockUnavailable("the lock store gave no answer in time"))
    if isinstance(operation, AwaitChange):
        seconds_left = min(seconds_left, LONGEST_WATCH_SECONDS)
    try:
        reply = store.perform(operation, seconds_left)
    except LockUnavailable as error:
        return Failed(error)
    if observe is not None:
        observe(reply)
    return reply
