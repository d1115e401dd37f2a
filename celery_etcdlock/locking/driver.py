"""Drives a sans-IO machine: sends its operations to a store and tells it the replies and the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, get_args

from celery_etcdlock.core.operations import AwaitChange, Operation, Pause
from celery_etcdlock.core.protocol import Machine
from celery_etcdlock.core.replies import Changed, Failed, Reply, StoreReply
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.cancel_wait import WaitCancellation
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.store_access import BlockingStoreAccess, StoreAccess, run_at_once

Outcome = TypeVar("Outcome")

#: By its class, since this is asked at every step: ``isinstance`` tries one class after the other.
OPERATIONS = frozenset(get_args(Operation))

#: A watch may die without a word (a half-open connection), so a waiter looks again at least this often, in seconds.
LONGEST_WATCH_SECONDS = 15.0

#: The part of the time for an acquire that is spent on trying; the rest is kept to resolve an unanswered request.
TRYING = 0.75


def drive(
    machine: Machine[Outcome],
    store: LockStore,
    clock: Clock,
    *,
    observe: Callable[[StoreReply], None] | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Outcome:
    """Run ``machine`` to its outcome, in this thread. Otherwise as ``steer``."""
    return run_at_once(steer(machine, BlockingStoreAccess(store, sleep), clock, observe=observe))


async def steer(
    machine: Machine[Outcome],
    asking: StoreAccess,
    clock: Clock,
    *,
    observe: Callable[[StoreReply], None] | None = None,
    stop: WaitCancellation | None = None,
) -> Outcome:
    """Run ``machine`` to its outcome. ``observe`` sees each of the store's replies before the machine does.

    Once ``stop`` is set, the machine waits no longer.
    """
    now = clock()
    step = machine.start(now)
    trouble: LockUnavailable | None = None
    while True:
        patience = seconds_left = machine.answer_by - now
        reply: Reply
        if isinstance(step, AwaitChange):
            patience = min(patience, LONGEST_WATCH_SECONDS)
            step = replace(step, stop=stop)
        if isinstance(step, Pause):
            await asking.pause(max(0.0, min(step.seconds, seconds_left)))
            reply = Changed()
        elif seconds_left <= 0:
            # What went wrong before tells more than that the time is over.
            reply = Failed(trouble or LockUnavailable("the lock store gave no answer in time"))
        else:
            try:
                reply = await asking.perform(step, patience)
            except LockUnavailable as error:
                trouble = error
                reply = Failed(error)
            else:
                if observe is not None:
                    observe(reply)
        now = clock()
        if stop is not None and stop.stopped:
            machine.stop_waiting(now)
        following: Any = machine.on(reply, now)
        if type(following) not in OPERATIONS:
            outcome: Outcome = following
            return outcome
        step = following
