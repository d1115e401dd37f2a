"""A lock that is held: what its holder sees of it.

*Trust.* It vouches for its holder until its session's deadline, until somebody finds that its key is gone, or until it
is released, whatever comes first, and only in the process that acquired it. After that it vouches for nothing, for
good, in whatever thread, context or forked child a copy of the reference was kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from celery_etcdlock.core.operations import HeldKey
from celery_etcdlock.core.protocol import Acquired
from celery_etcdlock.core.record import Record
from celery_etcdlock.errors import LockLost
from celery_etcdlock.locking.forked_copies import NOT_HELD, SharedDeadline
from celery_etcdlock.locking.session import PendingDelete, Session


class Held:
    """What is held by the process that acquired it: it shows whether it can be trusted, and can't be copied."""

    @property
    def lost(self: Any) -> bool:
        """Whether the lock can't be trusted any more: lost, or released, or this process is a fork of its holder."""
        return self.lost_reason is not None

    def __reduce__(self: Any) -> Any:
        raise TypeError(
            f"lock {self.name!r} can't be pickled or copied: it belongs to the process that holds it. Pass its name, "
            "or its fencing_token"
        )

    def __repr__(self: Any) -> str:
        reason = self.lost_reason
        state = f"{self.remaining:.1f} s left" if reason is None else f"not held: {reason}"
        return f"<{type(self).__name__} {self.name!r} fencing_token={self.fencing_token} {state}>"


class Lock(Held):
    """One holding of a lock by this process. See the module.

    ``name`` is the lock's name. ``fencing_token`` strictly rises with every new ownership of that name: hand it to the
    resource that the lock protects, and let the resource refuse lower ones. A lock that is lost stays lost.
    """

    def __init__(
        self, key: PendingDelete, acquired: Acquired, record: Record, session: Session, *, token_is_ours: bool
    ) -> None:
        self.name = key.name
        self.token = key.token
        self.fencing_token = acquired.fencing_token
        #: What was stored: whose it is.
        self.record = record
        #: When it was acquired, on the session's clock.
        self.acquired_at = session.now()
        self.session = session
        self.pid = os.getpid()
        #: An unanswered request may still arrive: release by resolving (``core.protocol.acquire``).
        self.doubtful = acquired.doubtful
        #: Whether the run that holds it has come to its end before; ``None`` where that isn't known (``done_marks``).
        self.has_run = acquired.has_run
        #: Nobody but this process ever knew the token: after a release it may serve again (``key_tokens``).
        self.token_is_ours = token_is_ours
        #: Called in another thread when the lock is lost.
        self.on_lost: Callable[[Lock], None] | None = None
        #: Called when ``check`` is about to raise.
        self.on_check_failed: Callable[[], None] | None = None
        #: Whether a forked copy of this process may ask it (``forked_copies``).
        self.copies_may_ask = False
        self._shared: SharedDeadline | None = None
        self._lost_reason: str | None = None
        self._ended = False
        #: It was released while it was ours.
        self.was_ours = False

    @property
    def key(self) -> HeldKey:
        """Its key in the store, as this holding wrote it."""
        return HeldKey(self.name, self.token, self.fencing_token)

    @property
    def pending_delete(self) -> PendingDelete:
        """What is to be done about its key once nobody holds the lock."""
        return PendingDelete(self.name, self.token, None if self.doubtful else self.fencing_token)

    @property
    def remaining(self) -> float:
        """Seconds for which the lock may be trusted if it weren't renewed any more; 0 once it can't be."""
        if self.lost_reason is not None:
            return 0.0
        if os.getpid() != self.pid:
            return max(0.0, self._shared_deadline() - self.session.now())
        return self.session.remaining()

    @property
    def lost_reason(self) -> str | None:
        """Why the lock can't be trusted; ``None`` while it can."""
        if self._lost_reason is not None:
            return self._lost_reason
        if self._ended:
            return "it was released"
        if os.getpid() != self.pid:
            return self._lost_reason_in_copy()
        return self.session.lost_reason()

    def _lost_reason_in_copy(self) -> str | None:
        copy = "this process is a forked copy of"
        if self._shared is None:
            return f"nobody can say here: {copy} the one that holds it, and isn't told whether it still does"
        deadline = self._shared_deadline()
        if deadline == NOT_HELD:
            return f"{copy} process {self.pid}, which doesn't hold it any more, or is about to release it"
        if self.session.now() >= deadline:
            return f"{copy} process {self.pid}, which couldn't renew it before its deadline"
        return None

    def _shared_deadline(self) -> float:
        deadline = NOT_HELD if self._shared is None else self._shared.read()
        return deadline if deadline == NOT_HELD else max(deadline, self.session.vouched_for(self.pid))

    def check(self) -> None:
        """Raise ``LockLost`` once the lock can't be trusted any more. Costs no network."""
        reason = self.lost_reason
        if reason is not None:
            if self.on_check_failed is not None and os.getpid() == self.pid:
                self.on_check_failed()
            raise LockLost(self.name, reason)

    def lose(self, reason: str) -> None:
        """Mark this one lock as lost, for good."""
        if self._lost_reason is None:
            self._lost_reason = reason
        self.tell_copies(NOT_HELD)

    def share(self) -> None:
        """Before a fork: let the copy know what becomes of the lock."""
        if self.copies_may_ask and self._shared is None:
            self._shared = SharedDeadline(NOT_HELD if self.lost else self.session.deadline)

    def tell_copies(self, deadline: float) -> None:
        """Until when the lock may be trusted; ``NOT_HELD``: not any more."""
        if self._shared is not None:
            self._shared.write(deadline)

    def end(self) -> None:
        """Its holder releases it now: whoever kept a reference must not rely on it any more."""
        self._ended = True
        self.tell_copies(NOT_HELD)
