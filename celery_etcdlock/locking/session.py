"""A session: one lease for all locks of a process with one TTL, and until when it may be trusted.

States: *open* until its deadline passes or the store says that it is gone; then *lost*, for good, with all its locks.
The deadline is checked wherever somebody asks, so no thread has to wake up for the loss to be known. A session that
nobody uses is *closed*: nobody gets it any more, and its lease is revoked.

*Two lists.* Whatever key this process may have on the lease is on one of two lists: held, or to be deleted
(``PendingDelete``). Its delete is pending from before the first request that may put it until it is held, and again
from before the first request that deletes it until an answer says that it is gone; so what strikes between two steps (a
time limit's signal) leaves no key that nobody knows of. A pending delete that somebody has in hand is due later, when
he must have come to an end; the renewal's thread does those that are due (``pending_deletes``).

*No mutex.* The renewal's thread and the tasks' threads share a session, and a task's thread may be struck between any
two bytecodes, also while it holds a mutex. So each step is a single operation on a dict, which is atomic, and none
needs the next one to be right.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple, Protocol

from celery_etcdlock.core.operations import HeldKey
from celery_etcdlock.core.protocol import Opened
from celery_etcdlock.core.replies import EpochMoved, SessionFenced, StoreReply
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.forked_copies import NOT_HELD, share_with_copies
from celery_etcdlock.locking.lease_page import LeasePage

#: Replies that tell the epoch.
MOVES_EPOCH = (SessionFenced, EpochMoved)

#: Fraction of the TTL after which a session is renewed.
RENEW_AFTER = 1 / 3

#: When a pending delete is due that nobody has in hand.
AT_ONCE = 0.0


class LockOnLease(Protocol):
    """A lock whose key lies on a session's lease, as the session sees it (``lock.Lock``)."""

    @property
    def key(self) -> HeldKey: ...

    @property
    def lost(self) -> bool: ...

    def share(self) -> None: ...

    def tell_copies(self, deadline: float) -> None: ...


class PendingDelete(NamedTuple):
    """A key that must be made to go before it may be forgotten.

    With ``mod_revision`` it is a release that got no answer; without, a token in doubt that must be resolved. With
    ``attempt`` it is only ours if the record says so (``core.protocol.take_over``). ``replaces`` is the task that was
    marked as replaced along with the key: the mark goes first, else nobody might run.
    """

    name: str
    token: str
    mod_revision: int | None = None
    attempt: str | None = None
    replaces: str | None = None


class Use:
    """One request's use of a session, which stays open until ``leave``. To leave twice does no harm."""

    def __init__(self) -> None:
        self.session: Session | None = None

    def leave(self) -> None:
        if self.session is not None:
            self.session.leave(self)


class Session:
    """See the module. Times are on ``clock``. On ``page``, if any, the parent process may vouch for the lease.

    ``on_abandoned`` is called whenever there is something to be deleted at once.
    """

    def __init__(
        self,
        lease: int,
        opened: Opened,
        clock: Clock,
        page: LeasePage | None = None,
        on_abandoned: Callable[[Session], object] | None = None,
    ) -> None:
        self.lease = lease
        self._on_abandoned = on_abandoned
        self._page = page
        self.ttl_seconds = opened.ttl_seconds
        self.opened_at = opened.opened_at
        self.term = opened.term
        self.closed = False
        self.renew_at = 0.0
        #: The time on the session's clock.
        self.now = clock
        self.epoch = opened.epoch
        self._deadline = opened.deadline
        self._lost_reason: str | None = None
        #: By a number that rises with each lock.
        self._held: dict[LockOnLease, int] = {}
        self._numbers = count(1)
        self._checked = 0
        #: By when each is due, on the clock.
        self._pending_deletes: dict[PendingDelete, float] = {}
        self._uses: dict[Use, None] = {}
        self._idle_since = clock()
        share_with_copies(self)

    # --- trust ----------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """Until when the session may be trusted, by our own renewals or our parent's (``child_lease_guardian``)."""
        if self._page is not None and self.now() >= self._deadline:
            return max(self._deadline, self._page.guardian_deadline(self.lease))
        return self._deadline

    def vouched_for(self, pid: int) -> float:
        """Until when the parent of process ``pid``, whose session this is, vouches for it; 0 if it doesn't."""
        return 0.0 if self._page is None else self._page.guardian_deadline(self.lease, pid)

    def remaining(self) -> float:
        """Seconds left to trust the session; 0 once it is lost."""
        seconds = self.deadline - self.now()
        if seconds <= 0:
            self.lost_reason()  # loses it
        return 0.0 if self._lost_reason is not None else max(0.0, seconds)

    def lost_reason(self) -> str | None:
        """Why the session is lost, or ``None``. Loses it when its deadline has passed."""
        # Our own deadline first, since this is asked many times for each lock.
        if self._lost_reason is None and self.now() >= self._deadline and self.now() >= self.deadline:
            self.lose("it couldn't be renewed before its deadline")
        return self._lost_reason

    def lose(self, reason: str) -> None:
        if self._lost_reason is None:
            self._lost_reason = reason
        for lock in self.held():
            lock.tell_copies(NOT_HELD)

    def share_held(self) -> None:
        """Before a fork."""
        for lock in self.held():
            lock.share()

    def renewed(self, deadline: float) -> None:
        """Trust the session until ``deadline``, unless it was lost before the answer was here."""
        if self.lost_reason() is None:
            self._deadline = max(self._deadline, deadline)
            for lock in self.held():
                if not lock.lost:
                    lock.tell_copies(self._deadline)
            if self._page is not None:
                self._page.renewed(self.lease, deadline)

    def observe(self, reply: StoreReply) -> None:
        """Learn the epoch from a store's reply. One that is too low costs a request, and no more."""
        if isinstance(reply, MOVES_EPOCH):
            self.epoch = max(self.epoch, reply.epoch)

    def schedule_renewal(self, seconds: float | None = None) -> None:
        """In a third of the TTL, or in so many seconds; a bit earlier, so that workers don't renew in step."""
        seconds = self.ttl_seconds * RENEW_AFTER if seconds is None else seconds
        self.renew_at = self.now() + seconds * random.uniform(0.85, 1.0)

    # --- who uses it ----------------------------------------------------------------------------------------

    def enter(self, use: Use) -> bool:
        """Keep the session open for a request; false if it is lost or closed."""
        if self.closed or self.lost_reason() is not None:
            return False
        use.session = self
        self._uses[use] = None
        if self.closed:  # by another thread, just now
            self._uses.pop(use, None)
            return False
        return True

    def leave(self, use: Use) -> None:
        if use in self._uses:
            self._idle_since = self.now()
            self._uses.pop(use, None)

    def close_if_idle(self, idle_seconds: float) -> bool:
        """Close the session if nothing hung on it for so long. Its lease may be revoked then."""
        if self.now() - self._idle_since < idle_seconds:
            return False
        # First, then look: whoever enters says so first, then looks whether it is closed.
        self.closed = True
        if self._uses or self._held or self._pending_deletes:
            self.closed = False
        return self.closed

    def close_if_only_pending_deletes(self) -> bool:
        """Close the session if only pending deletes hang on it, none of them in hand: its keys go with its lease."""
        self.closed = True
        # In this order: a release has its delete pending before it isn't held any more.
        if (
            self._uses
            or self._held
            or not self._pending_deletes
            or len(self.pending_deletes()) < len(self._pending_deletes)
        ):
            self.closed = False
        return self.closed

    def hold(self, lock: LockOnLease) -> None:
        self._held[lock] = next(self._numbers)

    def end_hold(self, lock: LockOnLease) -> bool:
        """No longer renewed as held; false if it wasn't, or not any more."""
        self._idle_since = self.now()
        lock.tell_copies(NOT_HELD)
        return self._held.pop(lock, None) is not None

    def held(self) -> list[Any]:
        """The ``Lock`` objects, which this module doesn't know."""
        return list(self._held)

    def next_to_check(self, most: int) -> tuple[HeldKey, ...]:
        """Up to ``most`` of the keys held: those that haven't been given here for the longest time."""
        held = self._held.copy()
        after = [lock for lock, number in held.items() if number > self._checked]
        before = [lock for lock, number in held.items() if number <= self._checked]
        locks = (after + before)[:most]
        if locks:
            self._checked = held[locks[-1]]
        return tuple(lock.key for lock in locks)

    # --- pending deletes ------------------------------------------------------------------------------------

    def intend(self, pending: PendingDelete, due: float) -> None:
        """Note a key that is about to be put or deleted: to be settled, or to be deleted from ``due`` on."""
        self._pending_deletes[pending] = due

    def abandon(self, pending: PendingDelete, lock: LockOnLease | None = None) -> None:
        """Have the key deleted at once, and no longer hold ``lock``."""
        self._pending_deletes[pending] = AT_ONCE
        if lock is not None:
            self.end_hold(lock)
        if self._on_abandoned is not None:
            self._on_abandoned(self)

    def begin_release(self, lock: LockOnLease, pending: PendingDelete, due: float) -> bool:
        """Have its delete pending instead of holding the lock. False if neither is so any more."""
        if lock in self._held:
            self._pending_deletes[pending] = due
            if not self.end_hold(lock):  # the renewal has found, just now, that it is gone
                self._pending_deletes.pop(pending, None)
        return pending in self._pending_deletes

    def hurry(self, lock: LockOnLease, pending: PendingDelete) -> None:
        """If the lock is still held, or its delete pending, that is due at once."""
        if lock in self._held or pending in self._pending_deletes:
            self.abandon(pending, lock)

    def has_pending_deletes(self, pending: PendingDelete) -> bool:
        return pending in self._pending_deletes

    def settle(self, pending: PendingDelete) -> bool:
        """It is pending no longer. False if it wasn't, or is due: then somebody may be deleting the key."""
        due = self._pending_deletes.pop(pending, None)
        now = self._idle_since = self.now()
        return due is not None and now < due

    def pending_deletes(self) -> list[PendingDelete]:
        """Those that are due."""
        now = self.now()
        return [pending for pending, due in self._pending_deletes.copy().items() if due <= now]

    def next_delete_due(self) -> float | None:
        """When a pending delete is due next; ``None`` if there is none at all."""
        return min(self._pending_deletes.copy().values(), default=None)
