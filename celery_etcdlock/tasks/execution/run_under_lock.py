"""Runs a task's body under its lock: acquire it, run, release it in a ``finally``; or do what the policy says.

How the lock is taken depends on the lifetime (``core.lifetimes``). One that was taken for the message is taken over, or
released where it ends with the start (``tasks.execution.message_claims``). Otherwise the lock is acquired, at once or
when it is our turn (``tasks.execution.queue_position``). ``core.key_kinds`` says what a key is to this run. A run that
can't have the lock meets the policy (``tasks.execution.meet_conflict``). At the end the lock is released, left to a
retry or replacement of the same message, or kept for a least hold (``tasks.execution.release_or_hand_over``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar, cast

from celery.exceptions import Reject, Retry

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.core.conflict_decision import Place
from celery_etcdlock.core.key_kinds import Relation, find
from celery_etcdlock.core.record import KeyKind
from celery_etcdlock.errors import EtcdLockError, LockUnavailable
from celery_etcdlock.locking.outcomes import Claim, Conflict
from celery_etcdlock.tasks.entry.caller import call_of, take_charge
from celery_etcdlock.tasks.execution.context import MESSAGE_PREFIX, ExecutionContext
from celery_etcdlock.tasks.execution.current_lock import CurrentLock, UnprotectedLock, holding
from celery_etcdlock.tasks.execution.held_locks import HeldLocks
from celery_etcdlock.tasks.execution.interruption import Interruption, running_here
from celery_etcdlock.tasks.execution.join import Joined, await_result, take_result
from celery_etcdlock.tasks.execution.meet_conflict import end_duplicate, meet_conflict, meet_outage, still_runs
from celery_etcdlock.tasks.execution.message_claims import MOST_LOOKS, check_claims, release_claims, take_over_claims
from celery_etcdlock.tasks.execution.queue_position import leave_queue, take_up, try_turn
from celery_etcdlock.tasks.execution.redelivery import HasRun, Redelivery, StillRuns, is_requeued
from celery_etcdlock.tasks.execution.release_or_hand_over import release_or_hand_over
from celery_etcdlock.tasks.execution.retry_state import has_result, retry_is_stored, store_retry
from celery_etcdlock.tasks.execution.skip_or_reschedule import skip
from celery_etcdlock.tasks.message.headers import Duplicate

logger = logging.getLogger("celery_etcdlock")

Result = TypeVar("Result")


def run_under_lock(
    task: Any, request: Any, names: Callable[[], tuple[str, ...]], body: Callable[[], Result], *, once: bool = False
) -> Result:
    """Run ``body`` under the locks ``names``; with ``once``, only if no message of this id came to its end before.

    ``request`` is that of the delivery or the eager call; ``None``: ``task`` is called as a function.
    Otherwise raises what ends the call: ``LockConflict``, ``LockUnavailable``, or for a worker Celery's ``Retry`` and
    ``Ignore``, after the message was sent back or its result stored.
    """
    call = call_of(request)
    if once:
        call.delivery = replace(call.delivery, call=None)  # each call of it is the same
    options = task._lock_plan.options
    execution = _Execution(ExecutionContext(task, options, call, EtcdLocks.from_app(task.app), names, once))
    try:
        take_charge(call)
        # Around everything, since a signal may strike before the inner one is left.
        with holding(None):
            return execution.run(body)
    finally:
        # Once more: a signal may have struck in the first.
        execution.end()


class _Execution:
    """From the first request to the store until the release."""

    def __init__(self, context: ExecutionContext) -> None:
        self._context = context
        self._in_worker = context.call.place is Place.WORKER
        # Only a worker's task is interrupted: any other process may use signals for itself.
        may_interrupt = context.options.on_lock_lost == "raise" and (self._in_worker or running_here())
        self._interruption = Interruption() if may_interrupt else None
        self._held = HeldLocks(context, self._interruption)
        self._redelivery = Redelivery(context)
        self._ended_by: BaseException | None = None
        self._had_lock = False
        self._has_ended = False

    def run(self, body: Callable[[], Result]) -> Result:
        try:
            try:
                lock = self._take()
            except Joined as found:
                joined = found
            else:
                with holding(lock):
                    self._check_not_done()
                    if self._context.call.has_expired:
                        # It came back without Celery's own end, since the first run of its message may live.
                        skip(self._context, "", "it expired while it waited for an earlier run, which left no result")
                    self._redelivery.entered = True
                    return body() if self._interruption is None else self._interruption.run(body)
            if joined.error is not None:
                raise joined.error
            return cast("Result", joined.result)
        except BaseException as error:
            self._ended_by = error
            # Before the release, which may take long: the retry is in its queue already.
            if isinstance(error, Retry) and self._in_worker and store_retry(self._context, error):
                retry_is_stored(self._context)
            raise
        finally:
            self.end()
            # Celery is still to store RETRY, and would store it over how the retry ended.
            if isinstance(self._ended_by, Retry) and self._in_worker and has_result(self._context):
                raise StillRuns("its retry has ended already")

    def _take(self) -> CurrentLock | None:
        """The lock under which the body runs; ``None`` where its lifetime has ended by now."""
        context, call, lifetime = self._context, self._context.call, self._context.lifetime
        try:
            if call.duplicate is not None:
                end_duplicate(context, call.duplicate)
            context.locks.circuit_breaker.check()
            if call.joins is not None:
                take_result(context, call.joins)
            if call.delivery.comebacks:
                check_claims(context)
            if lifetime.name == "until_expired":
                if not call.claims:
                    # First, for a copy of what has run must not open another window.
                    self._redelivery.check_has_run(None)
                    self._claim_window()
            elif lifetime.while_running and not (
                lifetime.hand_over and call.claims and take_over_claims(context, self._held)
            ):
                if call.joins is None:
                    self._acquire(context.names())
                else:
                    self._acquire_without_result(call.joins)
            self._had_lock = True
            if not lifetime.hand_over and lifetime.name != "until_expired":
                # Only now, so that what is queued stays one until it runs.
                release_claims(context)
            if not lifetime.while_running and self._in_worker:
                # A lock that only a copy of the message asks for.
                self._acquire((f"{MESSAGE_PREFIX}{call.delivery.task_id}",))
        except LockUnavailable as error:
            return self._run_unprotected(error)
        context.locks.circuit_breaker.over()
        return self._held.current if lifetime.while_running else None

    def _run_unprotected(self, error: LockUnavailable) -> CurrentLock:
        self._held.release()
        meet_outage(self._context, self._redelivery, error)
        name = self._context.names()[0]
        logger.warning(
            "Task %s runs WITHOUT its lock %r, because etcdlock_on_unavailable is 'run': %s",
            self._context.label,
            name,
            error,
        )
        return UnprotectedLock(name)

    def _claim_window(self) -> None:
        """A fixed window for a message that was published without one."""
        context = self._context
        names = context.names()
        record = replace(context.record, kind=KeyKind.WINDOW)
        assert context.options.unique_for is not None
        while True:
            outcomes = context.manager.claims.claim_all([(name, record) for name in names], context.options.unique_for)
            conflicts = [outcome for outcome in outcomes if isinstance(outcome, Conflict) and outcome.keys]
            if not conflicts:
                return
            if context.related_key(conflicts[0]) is not None:
                return  # its own window: a retry, or a copy
            meet_conflict(context, self._redelivery, conflicts[0], waited_for_predecessor=True)

    def _acquire(self, names: tuple[str, ...]) -> None:
        context, call = self._context, self._context.call
        waited_for_predecessor = False
        looks = 0
        while True:
            if call.position is not None and names == (call.position.name,):
                conflict = try_turn(context, self._held, call.position.name)
            else:
                conflict = self._held.acquire(names)
            if conflict is None:
                break
            if find(conflict.keys, call.delivery, Relation.OURS) is not None:
                if take_over_claims(context, self._held):
                    break
                looks += 1
                if looks < MOST_LOOKS:
                    continue  # deleted by its producer in this moment, or with a copy of the message now
            if self._acquires_again(conflict, names):
                continue
            meet_conflict(context, self._redelivery, conflict, waited_for_predecessor=waited_for_predecessor)
            waited_for_predecessor = True
        leave_queue(context)

    def _acquire_without_result(self, joins: Duplicate) -> None:
        """Acquire the lock only once there is neither a result of the joined run nor anything left of it.

        Its result is stored just after its release, or never if its worker died. It is awaited without the lock: who
        joins isn't to be seen as a holder.
        """
        names = self._context.names()
        if still_runs(self._context, joins):
            self._acquire(names)
            # It released the lock between the two.
            self._held.release()
        await_result(self._context, joins)
        self._acquire(names)

    def _acquires_again(self, conflict: Conflict, names: tuple[str, ...]) -> bool:
        """Whether to acquire again: with a queue position that was found, or without what was left behind."""
        context, call = self._context, self._context.call
        if len(names) == 1 and call.position is None and take_up(context, conflict.name, conflict.keys) is not None:
            return True
        left = find(conflict.keys, call.delivery, Relation.LEFT_BEHIND)
        return left is not None and context.manager.claims.drop(Claim(conflict.name, left.token, left.mod_revision))

    def _check_not_done(self) -> None:
        """With the lock held, whether the body has run already."""
        try:
            self._redelivery.check_has_run(self._held.has_run)
        except LockUnavailable as error:
            if self._context.locks.settings.on_unavailable != "run":
                self._held.release()
            meet_outage(self._context, self._redelivery, error)
            # The lock is held and stays so; what isn't known is whether a copy has run.
            logger.warning(
                "Task %s runs although it may have run before, because etcdlock_on_unavailable is 'run' and the store "
                "can't be asked: %s",
                self._context.label,
                error,
            )

    def end(self) -> None:
        """Release all that the run holds. A second call goes on where the first was interrupted."""
        if self._has_ended:
            return
        try:
            self._redelivery.ended(self._ended_by)
            self._held.end_each(
                lambda lock: release_or_hand_over(self._context, lock, self._ended_by, self._redelivery)
            )
            self._redelivery.put_mark()  # where nothing was held any more
        finally:
            self._drop_leftovers()
        self._has_ended = True

    def _drop_leftovers(self) -> None:
        """Drop what the message held before it started and nobody will take over."""
        context, call, error = self._context, self._context.call, self._ended_by
        if isinstance(error, HasRun):
            # Only what this copy waited with: the claim and what waits for a retry are the first's.
            leave_queue(context)
        comes_again = is_requeued(error) if isinstance(error, Reject) else isinstance(error, Retry | StillRuns | HasRun)
        if comes_again or (error is not None and not isinstance(error, Exception)):
            return  # the message comes again, with what it holds
        leftovers = () if context.lifetime.name == "until_expired" else call.claims
        names = {claim.name for claim in (*leftovers, call.position) if claim is not None}
        if context.lifetime.hand_over and not self._had_lock and self._in_worker:
            # It ended without its lock: nobody takes over what its predecessor leaves for it.
            with suppress(EtcdLockError):
                names.update(context.names())
        for name in sorted(names):
            context.manager.drop_ended(name, call.delivery)
