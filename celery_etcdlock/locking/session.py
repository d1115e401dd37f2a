"""A session: one lease for all locks of a process with one TTL, and until when it may be trusted.

States: *open* until its deadline passes or the store says that it is gone; then *lost*, for good, with all its locks.
The deadline is checked wherever somebody asks, so no thread has to wake up for the loss to be known. A session that
nobody uses is *closed*: nobody gets it any more, and its lease is revoked.

The renewal thread and the tasks' threads share a session, so it is guarded by a real mutex, held only for moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from celery_etcdlock.core.operations import HeldKey
from celery_etcdlock.core.protocol import Opened
from celery_etcdlock.core.replies import (
    EpochMoved,
    SessionFenced,
    StoreReply,
)
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.lease_page import LeasePage
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.native import allocate_mutex

__all__ = ["Debt", "Session"]


@dataclass(frozen=True, slots=True)
class Debt:
    """A key that must be made to go before it may be forgotten.

    With ``mod_revision`` it is a release that got no answer; without, a token in doubt that must be resolved. With
    ``attempt`` it is only ours if the record says so (``core.protocol.take_over``).
    """

    name: str
    token: str
    mod_revision: int | None = None
    attempt: str | None = None


class Session:
    """See the module. Times are on ``clock``. On ``page``, if any, the parent process may vouch for the lease."""

    def __init__(self, lease: int, opened: Opened, clock: Clock, page: LeasePage | None = None) -> None:
        self.lease = lease
        self._page = page
        self.ttl_seconds = opened.ttl_seconds
        self.opened_at = opened.opened_at
        self.term = opened.term
        self.closed = False
        self.renew_at = 0.0
        self._clock = clock
        self._mutex = allocate_mutex()
        self._epoch = opened.epoch
        self._deadline = opened.deadline
        self._lost_reason: str | None = None
        self._held: dict[str, Lock] = {}
        self._debts: dict[str, Debt] = {}
        self._users = 0
        self._idle_since = clock()

    # --- trust ----------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def deadline(self) -> float:
        """Until when the session may be trusted, by our own renewals or our parent's (``guardian``)."""
        if self._page is not None and self._clock() >= self._deadline:
            return max(self._deadline, self._page.guardian_deadline(self.lease))
        return self._deadline

    def now(self) -> float:
        """The time on the session's clock."""
        return self._clock()

    def remaining(self) -> float:
        """Seconds left to trust the session; 0 once it is lost."""
        if self.lost_reason() is not None:
            return 0.0
        return max(0.0, self.deadline - self._clock())

    def lost_reason(self) -> str | None:
        """Why the session is lost, or ``None``. Loses it when its deadline has passed."""
        if self._lost_reason is None and self._clock() >= self.deadline:
            self.lose("it couldn't be renewed before its deadline")
        return self._lost_reason

    def lose(self, reason: str) -> None:
        with self._mutex:
            if self._lost_reason is None:
                self._lost_reason = reason

    def renewed(self, deadline: float) -> None:
        """Trust the session until ``deadline``, unless it was lost before the answer was here."""
        if self.lost_reason() is None:
            with self._mutex:
                self._deadline = max(self._deadline, deadline)
            if self._page is not None:
                self._page.renewed(self.lease, deadline)

    def observe(self, reply: StoreReply) -> None:
        """Learn the epoch from a store's reply."""
        if isinstance(reply, SessionFenced | EpochMoved):
            with self._mutex:
                self._epoch = max(self._epoch, reply.epoch)

    # --- who uses it ----------------------------------------------------------------------------------------

    def enter(self) -> bool:
        """Keep the session open for a request; false if it is lost or closed."""
        if self.lost_reason() is not None:
            return False
        with self._mutex:
            if self.closed:
                return False
            self._users += 1
            return True

    def leave(self) -> None:
        with self._mutex:
            self._users -= 1
            self._idle_since = self._clock()

    def close_if_idle(self, idle_seconds: float) -> bool:
        """Close the session if nothing hung on it for so long. Its lease may be revoked then."""
        with self._mutex:
            if self._users or self._held or self._debts or self._clock() - self._idle_since < idle_seconds:
                return False
            self.closed = True
            return True

    def close_if_only_owing(self) -> bool:
        """Close the session if only debts hang on it. The end of its lease pays them."""
        with self._mutex:
            if self._users or self._held or not self._debts:
                return False
            self.closed = True
            return True

    def hold(self, lock: Lock) -> None:
        with self._mutex:
            self._held[lock.token] = lock

    def let_go(self, lock: Lock) -> bool:
        """No longer renewed as held; false if it wasn't, or not any more."""
        with self._mutex:
            self._idle_since = self._clock()
            if self._held.get(lock.token) is not lock:
                return False  # maybe a later one under the same token
            del self._held[lock.token]
            return True

    def abandon(self, debt: Debt) -> None:
        """No longer hold the token, if it was held, and owe it instead."""
        with self._mutex:
            self._held.pop(debt.token, None)
            self._debts[debt.token] = debt

    def held(self) -> list[Lock]:
        with self._mutex:
            return list(self._held.values())

    def next_to_check(self, most: int) -> tuple[HeldKey, ...]:
        """Up to ``most`` of the keys held: those that haven't been given here for the longest time."""
        with self._mutex:
            tokens = list(islice(self._held, most))
            locks = [self._held.pop(token) for token in tokens]
            self._held.update(zip(tokens, locks, strict=True))  # to the end of the line
        return tuple(lock.key for lock in locks)

    # --- what it owes ---------------------------------------------------------------------------------------

    def settle(self, debt: Debt) -> None:
        with self._mutex:
            self._debts.pop(debt.token, None)
            self._idle_since = self._clock()

    def debts(self) -> list[Debt]:
        with self._mutex:
            return list(self._debts.values())
