"""Runs a task's body under its lock: take it, run, let go of it in a ``finally``; or find out what else to do.

What is taken, and from whom, depends on the lifetime (``core.lifetimes``): a lock that the message holds already is
taken over, or dropped where it ends with the start; else the lock is acquired as by anybody who comes. Letting go is a
release, but for a retry or replacement of the same message, to which the lock is left, and for a least hold.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypeVar

from celery import Task
from celery.exceptions import Reject, Retry

from celery_etcdlock.core.conflict import (
    ComeBack,
    Fail,
    Join,
    Place,
    RunUnprotected,
    Situation,
    Skip,
    WaitForPredecessor,
    on_conflict,
    on_unavailable,
)
from celery_etcdlock.core.events import LockWaiting
from celery_etcdlock.core.ownership import Key, effective_limit, preceding
from celery_etcdlock.core.record import Kinship, Record
from celery_etcdlock.errors import LockLost, LockUnavailable
from celery_etcdlock.locking.claim import Claim, Conflict
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.tasks.call import Call, entrance
from celery_etcdlock.tasks.choice import policy_of
from celery_etcdlock.tasks.current import CurrentLock, SeveralLocks, UnprotectedLock, holding
from celery_etcdlock.tasks.headers import Duplicate
from celery_etcdlock.tasks.interruption import Interruption, running_here
from celery_etcdlock.tasks.joining import Joined, await_result, take_result
from celery_etcdlock.tasks.leaving import let_go
from celery_etcdlock.tasks.outage import outage
from celery_etcdlock.tasks.plan import LockPlan
from celery_etcdlock.tasks.redelivery import HasRun, Redelivery, StillRuns
from celery_etcdlock.tasks.runtime import EtcdLocks, conflict_error, describe_holder
from celery_etcdlock.tasks.turned_away import come_back, skip

__all__ = ["run_locked"]

logger = logging.getLogger("celery_etcdlock")
jitter = random.Random()

Result = TypeVar("Result")

#: Seconds for which a place in line stands after its message is due.
PLACE_SECONDS = 60.0


def run_locked(
    task: Task[Any, Any],
    plan: LockPlan,
    names: Callable[[], tuple[str, ...]],
    body: Callable[[], Result],
    *,
    once: bool = False,
) -> Result:
    """Run ``body`` under the locks ``names``; with ``once``, only if this message never came to its end before.

    Otherwise raises what ends the call: ``LockConflict``, ``LockUnavailable``, or for a worker Celery's ``Retry`` and
    ``Ignore``, after the message was sent back or its result stored.
    """
    run = _Run(task, plan, names, once=once)
    try:
        result: Result
        try:
            lock = run.take()
        except Joined as joined:
            result = joined.result
        else:
            with holding(lock) if lock is not None else nullcontext():
                run.check_not_done()
                result = run.body(body)
        run.redelivery.ended(None)
        return result
    except BaseException as error:
        run.ended_by = error
        run.redelivery.ended(error)
        raise
    finally:
        try:
            run.release()
        finally:
            run.drop_leftovers()


class _Run:
    """One call of a locked task, from the first request to the store until the release."""

    def __init__(
        self, task: Task[Any, Any], plan: LockPlan, names: Callable[[], tuple[str, ...]], *, once: bool
    ) -> None:
        self._task = task
        self._plan = plan
        self._options = plan.options
        self._lifetime = plan.options.lifetime
        self._names = names
        self._locks = EtcdLocks.from_app(task.app)
        self._call: Call = entrance(task)
        self._held: list[Lock] = []
        #: What this delivery holds before it starts: locks, and a place in line.
        self._claims = self._call.claims
        self._line = self._call.line
        self._in_line: tuple[Key, ...] = ()
        self._interruption = self._make_interruption()
        self.redelivery = Redelivery(task, self._call, self._locks.manager.done, expected=once)
        self.ended_by: BaseException | None = None

    def _make_interruption(self) -> Interruption | None:
        """Only a worker's task is interrupted: a process of somebody else's has its own use for signals."""
        in_worker = self._call.place is Place.WORKER or running_here()
        return Interruption() if in_worker and self._options.on_lock_lost == "raise" else None

    def body(self, body: Callable[[], Result]) -> Result:
        return body() if self._interruption is None else self._interruption.run(body)

    @property
    def _record(self) -> Record:
        return self._locks.record(self._call.delivery, self._task.name, self._options.lock_limit)

    @property
    def _ttl_seconds(self) -> int:
        return self._options.lock_ttl or self._locks.settings.ttl

    # --- taking -------------------------------------------------------------------------------------------------

    def take(self) -> CurrentLock | None:
        """The lock under which the body runs; ``None`` where its lifetime has ended by now."""
        call = self._call
        if call.duplicate is not None:
            self._end_duplicate(call.duplicate)
        try:
            if call.joins is not None:
                take_result(self._task, call, call.joins)
            if call.comebacks:
                self._check_claims()
            if self._lifetime.name == "until_expired":
                if not self._claims:
                    self._claim_window()
            elif self._lifetime.while_running:
                if not (self._lifetime.hand_over and self._claims and self._take_over()):
                    self._acquire()
                if call.joins is not None:
                    # Free, and there was no result: it is stored just after the release, or its worker died.
                    await_result(self._task, call, call.joins)
            if not self._lifetime.hand_over and self._lifetime.name != "until_expired":
                # Only now, so that what is queued stays one until it runs.
                self._drop_claims()
        except LockUnavailable as error:
            return self._on_unavailable(error)
        outage.over()
        if len(self._held) > 1:
            return SeveralLocks(tuple(self._held))
        return self._held[0] if self._held else None

    def _check_claims(self) -> None:
        """Whether a newer call took our place while we were away."""
        for claim in self._claims:
            keys = self._locks.manager.pending.look(claim.name)
            if not any(key.token == claim.token and key.mod_revision == claim.revision for key in keys):
                self._check_not_replaced(claim, keys)

    def _drop_claims(self) -> None:
        for claim in self._claims:
            if not self._locks.manager.pending.drop(claim):
                self._check_not_replaced(claim, self._locks.manager.pending.look(claim.name))
        self._claims = ()

    def _take_over(self) -> bool:
        """Take over the locks that the message holds. Returns whether they are all ours now."""
        for claim in self._claims:
            outcome = self._locks.take_over(
                claim, self._record, ttl_seconds=self._ttl_seconds, on_held=self._hold, on_lost=self._lost
            )
            if isinstance(outcome, Conflict):
                self._check_not_replaced(claim, outcome.keys)
                # Its time was over, or a copy of the message has it: from here on as anybody who comes, who
                # would take the others for somebody's.
                self._release_all()
                for other in self._claims:
                    if other is not claim:
                        self._locks.manager.pending.drop(other)
                self._claims = ()
                return False
        self._claims = ()
        return True

    def _check_not_replaced(self, claim: Claim, keys: tuple[Key, ...]) -> None:
        mine = next((key for key in keys if key.token == claim.token), None)
        if mine is not None:
            kinship = self._call.delivery.kinship(mine.record.delivery if mine.record is not None else None)
            replaced = kinship is Kinship.STRANGER
        else:
            replaced = self._locks.manager.pending.is_replaced(self._call.delivery.task_id)
        if replaced:
            if self._line is not None:
                self._locks.manager.pending.drop(self._line)
            skip(self._task, self._call, claim.name, f"a newer call took its place in the queue, lock {claim.name!r}")

    def _claim_window(self) -> None:
        """A fixed window for a message that was published without one."""
        names = self._names()
        assert self._options.unique_for is not None
        while True:
            outcomes = self._locks.manager.pending.claim_all(
                [(name, self._record) for name in names], self._options.unique_for
            )
            conflicts = [outcome for outcome in outcomes if isinstance(outcome, Conflict) and outcome.keys]
            if not conflicts:
                return
            kinship, _ = self._kin(conflicts[0])
            if kinship is not Kinship.STRANGER:
                return  # its own window: a retry, or a copy
            self._on_conflict(conflicts[0], waited_for_predecessor=True)

    def _acquire(self) -> None:
        names = self._names()
        waited_for_predecessor = False
        while True:
            outcome = self._try(names)
            if not isinstance(outcome, Conflict):
                return
            _, kin = self._kin(outcome)
            if kin is not None and self._is_left_to_us(kin) and self._take_what_is_left(names, outcome):
                return
            decision = self._on_conflict(outcome, waited_for_predecessor)
            if kin is not None:
                self._locks.manager.pending.await_change(kin, outcome.name, decision.seconds)
            waited_for_predecessor = True

    def _is_left_to_us(self, key: Key) -> bool:
        """Whether a key of this very message waits for it: left by its predecessor, or put when it was published."""
        record = key.record
        if record is None:
            return False
        # One that its producer never knew of, for want of an answer. A run's own key has no end, but for a least hold.
        unclaimed = record.until is not None and self._lifetime.hand_over and not self._options.lock_at_least_for
        return record.handed_over or unclaimed

    def _take_what_is_left(self, names: tuple[str, ...], conflict: Conflict) -> bool:
        """Take over the keys that wait for this message, and the other locks as anybody. Returns whether all are ours.

        ``conflict`` is what was found under one of the names.
        """
        for name in names:
            found = conflict if name == conflict.name else Conflict(name, self._locks.manager.pending.look(name))
            _, kin = self._kin(found)
            if kin is not None and self._is_left_to_us(kin):
                claim = Claim(name, kin.token, kin.mod_revision)
                self._locks.take_over(
                    claim, self._record, ttl_seconds=self._ttl_seconds, on_held=self._hold, on_lost=self._lost
                )
        missing = tuple(name for name in names if name not in {lock.name for lock in self._held})
        if missing and len(missing) < len(names) and not isinstance(self._try(missing), Conflict):
            return True
        if missing:
            self._release_all()
        return not missing

    def _try(self, names: tuple[str, ...]) -> Lock | list[Lock] | Conflict:
        if len(names) > 1:
            return self._locks.manager.acquire_all(
                names, self._record, ttl_seconds=self._ttl_seconds, on_held=self._hold, on_lost=self._lost
            )
        if self._line is not None:
            return self._try_in_line(self._line)
        return self._locks.acquire(
            names[0], self._record, ttl_seconds=self._ttl_seconds, on_held=self._hold, on_lost=self._lost
        )

    def _try_in_line(self, place: Claim) -> Lock | Conflict:
        """Whether it is our turn (rule 2)."""
        keys = self._locks.manager.pending.look(place.name)
        mine = next((key for key in keys if key.token == place.token), None)
        if mine is None or mine.mod_revision != place.revision:
            # Its time was over, or a copy of the message came first: take a new one.
            self._line = None
            return self._locks.acquire(
                place.name, self._record, ttl_seconds=self._ttl_seconds, on_held=self._hold, on_lost=self._lost
            )
        before = preceding(keys, mine.create_revision)
        if len(before) >= effective_limit(self._options.lock_limit, before):
            return Conflict(place.name, tuple(before))
        outcome = self._locks.take_over(
            place, self._record, ttl_seconds=self._ttl_seconds, on_held=self._hold, on_lost=self._lost
        )
        if isinstance(outcome, Lock):
            self._line = None
        return outcome

    # --- letting go ---------------------------------------------------------------------------------------------

    def check_not_done(self) -> None:
        """With the lock held, whether the body has run already."""
        try:
            self.redelivery.check()
        except LockUnavailable as error:
            decision = on_unavailable(
                self._call.place, self._locks.settings.on_unavailable, self._call.comebacks, jitter
            )
            if not isinstance(decision, RunUnprotected):
                self._on_unavailable(error)
            # The lock is held and stays so; what isn't known is whether a copy has run.
            logger.warning(
                "Task %s[%s] runs although nobody can say whether it has run before, because "
                "etcdlock_on_unavailable is 'run': %s",
                self._task.name,
                self._call.delivery.task_id,
                error,
            )
            self.redelivery.goes_on()

    def release(self) -> None:
        self._with_each_held(lambda lock: let_go(self._task, self._plan, self._call, lock, self.ended_by))

    def _release_all(self) -> None:
        self._with_each_held(self._locks.manager.release)

    def _with_each_held(self, do: Callable[[Lock], None]) -> None:
        """With every lock, also when a time limit strikes in the midst of it."""
        struck: BaseException | None = None
        while self._held:
            try:
                do(self._held.pop(0))
            except BaseException as error:
                struck = struck or error
        if struck is not None:
            raise struck

    def drop_leftovers(self) -> None:
        """What the message held before it started and nobody will take over, since it came to its end."""
        error = self.ended_by
        goes_on = isinstance(error, Retry | Reject | StillRuns | HasRun)
        if goes_on or (error is not None and not isinstance(error, Exception)):
            return  # it comes again, and with it what it holds
        claims = () if self._lifetime.name == "until_expired" else self._claims
        leftovers = claims if self._line is None else (*claims, self._line)
        self._claims, self._line = (), None
        for claim in leftovers:
            self._locks.manager.drop_in_the_end(claim)

    def _hold(self, lock: Lock) -> None:
        if self._interruption is not None:
            lock.on_told = self._interruption.told
        self._held.append(lock)

    def _lost(self, lock: Lock) -> None:
        if self._interruption is not None:
            self._interruption.interrupt(LockLost(lock.name, lock.lost_reason or "lost"))

    # --- conflicts ----------------------------------------------------------------------------------------------

    def _kin(self, conflict: Conflict) -> tuple[Kinship, Key | None]:
        """The holder that is of this message, if there is one."""
        for key in conflict.keys:
            kinship = self._call.delivery.kinship(key.record.delivery if key.record is not None else None)
            if kinship is not Kinship.STRANGER:
                return kinship, key
        return Kinship.STRANGER, None

    def _on_conflict(self, conflict: Conflict, waited_for_predecessor: bool) -> WaitForPredecessor:
        call = self._call
        kinship, kin = self._kin(conflict)
        # Whoever holds the lock, a copy of what has run has nothing to wait for, and no result to touch.
        self.redelivery.check_has_run()
        holder = kin.record.delivery if kin is not None and kin.record is not None else None
        self._warn_of_another_broker(conflict)
        error = conflict_error(conflict)
        policy, is_own = policy_of(self._options, self._locks.settings, error, at_enqueue=False)
        decision = on_conflict(
            Situation(
                place=call.place,
                policy=policy,
                policy_is_own=is_own,
                kinship=kinship,
                waited_for_predecessor=waited_for_predecessor,
                in_chord_header=call.request is not None and bool(call.request.chord),
                comebacks=call.comebacks,
                waited=call.waited if kinship is Kinship.STRANGER else 0.0,
                wait_timeout=self._options.wait_timeout,
            ),
            jitter,
        )
        if isinstance(decision, WaitForPredecessor):
            return decision
        if isinstance(decision, Skip):
            skip(self._task, call, conflict.name, str(error))
        if isinstance(decision, Join):
            # Without a task id there is nobody whose result could be awaited.
            joins = Duplicate.of("join", error) if error.task_id is not None else None
            if joins is not None:
                take_result(self._task, call, joins)
            comeback = ComeBack(decision.seconds, decision.comebacks)
            come_back(self._task, call, comeback, error, claims=self._claims, joins=joins)
        if isinstance(decision, ComeBack):
            if kinship is Kinship.STRANGER:
                if not call.comebacks:
                    self._locks.tell(LockWaiting(conflict.name, self._record, conflict.holder))
                self._line_up(conflict, decision)
                if self._is_our_turn():
                    return WaitForPredecessor(0.0)
            come_back(
                self._task,
                call,
                decision,
                error,
                is_copy=holder is not None and holder.step == call.delivery.step,
                claims=self._claims,
                line=self._line,
                joins=call.joins,
            )
        if self._line is not None:
            self._locks.manager.pending.drop(self._line)
        raise error

    def _line_up(self, conflict: Conflict, decision: ComeBack) -> None:
        """Take a place in line, or keep the one that we have, or give it up: as the policy says."""
        pending = self._locks.manager.pending
        if decision.replaces and conflict.keys:
            asked_by = f"task {self._call.delivery.task_id}, which replaces it,"
            self._locks.manager.ask_to_let_go(conflict.name, conflict.keys[0], asked_by)
        line = self._line
        self._in_line = ()
        if decision.in_line and self._lifetime.while_running and len(self._names()) == 1:
            stands_for = decision.seconds + PLACE_SECONDS
            kept = pending.keep(line, replace(self._record, in_line=True), stands_for) if line is not None else None
            if isinstance(kept, Claim):
                self._line = kept
            else:
                self._line, self._in_line = pending.take_place(conflict.name, self._record, stands_for)
        elif line is not None:
            pending.drop(line)
            self._line = None

    def _is_our_turn(self) -> bool:
        """Whether the lock came free while we took our place."""
        if self._line is None or not self._in_line:
            return False
        token = self._line.token
        mine = next(key for key in self._in_line if key.token == token)
        before = preceding(self._in_line, mine.create_revision)
        return len(before) < effective_limit(self._options.lock_limit, before)

    def _warn_of_another_broker(self, conflict: Conflict) -> None:
        holder, mine = conflict.holder, self._record
        if holder is not None and holder.broker != mine.broker and holder.broker is not None:
            logger.warning(
                "lock %r is held by a task of another broker (%s): if these are two deployments, give each "
                "its own etcdlock_prefix",
                conflict.name,
                describe_holder(conflict.keys),
            )

    def _end_duplicate(self, duplicate: Duplicate) -> None:
        """What was found to be a duplicate when it was published gets here what it would have got there."""
        if duplicate.policy == "skip":
            skip(self._task, self._call, duplicate.name, str(duplicate.conflict))
        if duplicate.policy != "join" or duplicate.task_id is None:
            raise duplicate.conflict
        take_result(self._task, self._call, duplicate)
        decision = on_conflict(
            Situation(
                place=self._call.place,
                policy="join",
                comebacks=self._call.comebacks,
                waited=self._call.waited,
                wait_timeout=self._options.wait_timeout,
            ),
            jitter,
        )
        if isinstance(decision, Join):
            come_back(self._task, self._call, ComeBack(decision.seconds, decision.comebacks), duplicate.conflict)
        raise duplicate.conflict

    def _decide_on_unavailable(self) -> Fail | ComeBack | RunUnprotected:
        return on_unavailable(self._call.place, self._locks.settings.on_unavailable, self._call.comebacks, jitter)

    def _on_unavailable(self, error: LockUnavailable) -> CurrentLock:
        call = self._call
        settings = self._locks.settings
        self._release_all()
        decision = self._decide_on_unavailable()
        if isinstance(decision, RunUnprotected):
            name = self._names()[0]
            logger.warning(
                "Task %s[%s] runs WITHOUT its lock %r, because etcdlock_on_unavailable is 'run': %s",
                self._task.name,
                call.delivery.task_id,
                name,
                error,
            )
            return UnprotectedLock(name)
        # Of the public type: a result backend names the class, and whoever reads it must be able to catch it.
        public = LockUnavailable(str(error), maybe_applied=error.maybe_applied, permanent=error.permanent)
        if isinstance(decision, ComeBack):
            outage.tell(error, settings.timeout)
            come_back(self._task, call, decision, public, claims=self._claims, line=self._line, joins=call.joins)
        raise public from error
