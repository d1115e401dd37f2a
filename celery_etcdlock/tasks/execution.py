"""Runs a task's body under its lock: take it, run, release it in a ``finally``; or find out what else to do."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any, TypeVar

from celery import Task

from celery_etcdlock.core.conflict import (
    ComeBack,
    Place,
    RunUnprotected,
    Situation,
    Skip,
    WaitForPredecessor,
    on_conflict,
    on_unavailable,
)
from celery_etcdlock.core.options import TaskOptions
from celery_etcdlock.core.record import Kinship
from celery_etcdlock.errors import LockConflict, LockLost, LockUnavailable
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.manager import Conflict
from celery_etcdlock.tasks.call import Call, entrance
from celery_etcdlock.tasks.current import CurrentLock, UnprotectedLock, holding
from celery_etcdlock.tasks.interruption import Interruption, running_here
from celery_etcdlock.tasks.redelivery import Redelivery
from celery_etcdlock.tasks.runtime import EtcdLocks, describe_holder
from celery_etcdlock.tasks.turned_away import come_back, skip

__all__ = ["run_locked"]

logger = logging.getLogger("celery_etcdlock")
jitter = random.Random()

Result = TypeVar("Result")


def run_locked(
    task: Task[Any, Any],
    options: TaskOptions,
    name: str,
    body: Callable[[], Result],
) -> Result:
    """Run ``body`` under the lock ``name``.

    Otherwise raises what ends the call: ``LockConflict``, ``LockUnavailable``, or for a worker Celery's ``Retry`` and
    ``Ignore``, after the message was sent back or its result stored.
    """
    run = _Run(task, options, name)
    try:
        with holding(run.take()):
            run.check_not_done()
            result = run.body(body)
        run.redelivery.ended(None)
        return result
    except BaseException as error:
        run.redelivery.ended(error)
        raise
    finally:
        run.release()


class _Run:
    """One call of a locked task, from the first request to the store until the release."""

    def __init__(self, task: Task[Any, Any], options: TaskOptions, name: str) -> None:
        self._task = task
        self._options = options
        self._name = name
        self._locks = EtcdLocks.from_app(task.app)
        self._call: Call = entrance(task)
        self._held: Lock | None = None
        self._interruption = self._make_interruption()
        self.redelivery = Redelivery(task, self._call, self._locks.manager.done)

    def _make_interruption(self) -> Interruption | None:
        """Only a worker's task is interrupted: a process of somebody else's has its own use for signals."""
        in_worker = self._call.place is Place.WORKER or running_here()
        return Interruption() if in_worker and self._options.on_lock_lost == "raise" else None

    def body(self, body: Callable[[], Result]) -> Result:
        return body() if self._interruption is None else self._interruption.run(body)

    def take(self) -> CurrentLock:
        waited_for_predecessor = False
        wait_seconds = 0.0
        while True:
            try:
                outcome = self._locks.acquire(
                    self._name,
                    self._locks.record(self._call.delivery, self._task.name),
                    ttl_seconds=self._options.lock_ttl or self._locks.settings.ttl,
                    wait_seconds=wait_seconds,
                    on_held=self._hold,
                    on_lost=self._lost,
                )
                if isinstance(outcome, Lock):
                    _outage.over()
                    return outcome
                decision = self._on_conflict(outcome, waited_for_predecessor)
            except LockUnavailable as error:
                return self._on_unavailable(error)
            waited_for_predecessor = True
            wait_seconds = decision.seconds

    def check_not_done(self) -> None:
        """With the lock held, whether the body has run already."""
        try:
            self.redelivery.check()
        except LockUnavailable as error:
            self._on_unavailable(error)

    def release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._locks.manager.release(held)

    def _hold(self, lock: Lock) -> None:
        self._held = lock

    def _lost(self, lock: Lock) -> None:
        try:
            lock.check()
        except LockLost as error:
            if self._interruption is not None:
                self._interruption.interrupt(error)

    def _on_conflict(self, conflict: Conflict, waited_for_predecessor: bool) -> WaitForPredecessor:
        call = self._call
        holder = conflict.keys[0].record if conflict.keys else None
        kinship = call.delivery.kinship(holder.delivery if holder is not None else None)
        if kinship is not Kinship.STRANGER:
            self.redelivery.check_for_kin()
        mine = self._locks.record(call.delivery, self._task.name)
        if holder is not None and holder.broker != mine.broker and holder.broker is not None:
            logger.warning(
                "lock %r is held by a task of another broker (%s): if these are two deployments, give each "
                "its own etcdlock_prefix",
                self._name,
                describe_holder(conflict.keys),
            )
        decision = on_conflict(
            Situation(
                place=call.place,
                policy=self._options.on_conflict or self._locks.settings.on_conflict,
                policy_is_own=self._options.on_conflict is not None,
                kinship=kinship,
                waited_for_predecessor=waited_for_predecessor,
                in_chord_header=call.request is not None and bool(call.request.chord),
                comebacks=call.comebacks,
                waited=call.waited if kinship is Kinship.STRANGER else 0.0,
                wait_timeout=self._options.wait_timeout,
            ),
            jitter,
        )
        error = LockConflict(self._name, describe_holder(conflict.keys))
        if isinstance(decision, WaitForPredecessor):
            return decision
        if isinstance(decision, Skip):
            skip(self._task, call, self._name, str(error))
        if isinstance(decision, ComeBack):
            come_back(self._task, call, decision, error, is_copy=kinship is Kinship.COPY)
        raise error

    def _on_unavailable(self, error: LockUnavailable) -> CurrentLock:
        call = self._call
        settings = self._locks.settings
        decision = on_unavailable(call.place, settings.on_unavailable, call.comebacks, jitter)
        if isinstance(decision, RunUnprotected):
            logger.warning(
                "Task %s[%s] runs WITHOUT its lock %r, because etcdlock_on_unavailable is 'run': %s",
                self._task.name,
                call.delivery.task_id,
                self._name,
                error,
            )
            return UnprotectedLock(self._name)
        # Of the public type: a result backend names the class, and whoever reads it must be able to catch it.
        public = LockUnavailable(str(error), maybe_applied=error.maybe_applied, permanent=error.permanent)
        if isinstance(decision, ComeBack):
            _outage.tell(error, settings.timeout)
            come_back(self._task, call, decision, public)
        raise public from error


class _Outage:
    """Says once that the store is away, not once for each task."""

    def __init__(self) -> None:
        self._told = False

    def tell(self, error: LockUnavailable, timeout_seconds: float) -> None:
        if self._told:
            return
        self._told = True
        logger.warning(
            "celery-etcdlock can't take locks: %s. Locked tasks aren't lost: they come back later, with growing "
            "delays, until it answers. Check etcd and the settings etcdlock_endpoints and etcdlock_timeout (%g s); "
            "etcdlock_on_unavailable says what else tasks could do. This is said once per outage and process.",
            error,
            timeout_seconds,
        )

    def over(self) -> None:
        if self._told:
            self._told = False
            logger.warning("celery-etcdlock takes locks again.")


_outage = _Outage()
