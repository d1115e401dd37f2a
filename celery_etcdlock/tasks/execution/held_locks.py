"""The locks that one run of a task holds. Each is listed before the request for it returns, until it is released.

So a time limit that strikes at any moment leaves none behind: what was taken is listed, and the run's ``finally``
releases it. A lock stays on the list until its release has returned. A release that was interrupted is repeated: the
session knows what the first left undone (``locking.session``), so the second only has to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from celery_etcdlock.errors import LockLost
from celery_etcdlock.locking.acquisition import AcquireRequest
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.outcomes import Claim, Conflict
from celery_etcdlock.tasks.execution.context import ExecutionContext
from celery_etcdlock.tasks.execution.current_lock import CurrentLock, SeveralLocks
from celery_etcdlock.tasks.execution.interruption import Interruption

#: To release a lock: the second goes on where the first was interrupted.
ATTEMPTS = 2


class HeldLocks:
    """``interruption`` strikes when one of them is lost, or somebody asks for it. Raises ``LockUnavailable``."""

    def __init__(self, context: ExecutionContext, interruption: Interruption | None) -> None:
        self._context = context
        self._interruption = interruption
        self._held: list[Lock] = []

    @property
    def current(self) -> CurrentLock | None:
        """What the body sees of them."""
        if len(self._held) > 1:
            return SeveralLocks(tuple(self._held))
        return self._held[0] if self._held else None

    @property
    def names(self) -> frozenset[str]:
        return frozenset(lock.name for lock in self._held)

    @property
    def has_run(self) -> bool | None:
        """Whether the store said, when they were taken, that this run has come to its end before."""
        known = [lock.has_run for lock in self._held if lock.has_run is not None]
        return any(known) if known else None

    def acquire(self, names: Sequence[str], claim: Claim | None = None) -> Conflict | None:
        """Take all of these locks, or none and say who has one."""
        context = self._context
        ttl_seconds = context.options.lock_ttl or context.locks.settings.ttl
        request = AcquireRequest(
            tuple(names), context.record, ttl_seconds, on_held=self._hold, on_lost=self._lost, claim=claim
        )
        outcome = context.manager.acquire_all(request)
        return outcome if isinstance(outcome, Conflict) else None

    def take_over(self, claim: Claim) -> Conflict | None:
        """Take over a lock that this message holds, or say who has it."""
        return self.acquire([claim.name], claim)

    def release(self) -> None:
        self.end_each(self._context.manager.release)

    def end_each(self, do: Callable[[Lock], object]) -> None:
        """Call ``do`` with every lock, even if a time limit strikes in between."""
        struck: BaseException | None = None
        while self._held:
            lock = self._held[0]
            for _ in range(ATTEMPTS):
                try:
                    do(lock)
                    break
                except BaseException as error:
                    struck = struck or error
            self._held.remove(lock)
        if struck is not None:
            raise struck

    def _hold(self, lock: Lock) -> None:
        if self._interruption is not None:
            lock.on_check_failed = self._interruption.raised_elsewhere
        lock.copies_may_ask = True
        self._held.append(lock)

    def _lost(self, lock: Lock) -> None:
        # A lock that only keeps copies apart isn't what the body relies on.
        if self._interruption is not None and self._context.lifetime.while_running:
            self._interruption.interrupt(LockLost(lock.name, lock.lost_reason or "lost"))
