"""What a process knows of an outage: said once, not for each task, and not waited out by each of them anew.

States: *well*; *away*, after an answer that the store isn't there, or a second one in a row that never came. While it
is away one caller at a time tries it, with a pause in between; all others are told at once what the last one found. So
a web process that enqueues doesn't hang once for each call, and locked tasks don't fill a worker's slots with waiting.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from celery_etcdlock.errors import LockUnavailable

logger = logging.getLogger("celery_etcdlock")

WHAT_TASKS_DO = {
    "retry": "aren't lost: they come back later, with growing delays, until it answers",
    "raise": "fail with LockUnavailable",
    "run": "run without a lock",
}


class CircuitBreaker:
    """One for each app in each process; a forked child begins with what its parent knew."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._mutex = threading.Lock()
        self._told = False
        self._unanswered = 0
        self._found: LockUnavailable | None = None
        self._try_again_at = 0.0

    def check(self, timeout_seconds: float) -> None:
        """Return if the store should be asked. Raises ``LockUnavailable`` while it was found to be away just now."""
        if self._found is None:
            return
        with self._mutex:
            found, now = self._found, self._monotonic()
            if found is None:
                return
            if now >= self._try_again_at:
                # This caller tries; until it knows, and for as long again, nobody else does.
                self._try_again_at = now + 2 * timeout_seconds
                return
            pause = self._try_again_at - now
        raise LockUnavailable(f"{found} (cached failure; next attempt within {pause:.1f} s)", permanent=found.permanent)

    def tell(self, error: LockUnavailable, timeout_seconds: float, policy: str = "retry") -> None:
        """An attempt failed. Of what ``check`` raised nothing is learnt. ``policy`` is ``etcdlock_on_unavailable``."""
        with self._mutex:
            if self._found is None:
                self._unanswered += 1
                # One answer that never came may be a request's own bad luck.
                if not error.maybe_applied or self._unanswered > 1:
                    self._found = error
                    self._try_again_at = self._monotonic() + timeout_seconds
            if self._told:
                return
            self._told = True
        logger.warning(
            "celery-etcdlock can't acquire locks: %s. Locked tasks %s. Check etcd and the settings "
            "etcdlock_endpoints and etcdlock_timeout (%g s); "
            "etcdlock_on_unavailable says what else tasks could do. This is said once per outage and process.",
            error,
            WHAT_TASKS_DO[policy],
            timeout_seconds,
        )

    def over(self) -> None:
        """An attempt was answered."""
        if not self._unanswered:
            return
        with self._mutex:
            self._unanswered = 0
            self._found = None
            told, self._told = self._told, False
        if told:
            logger.warning("celery-etcdlock: etcd is reachable again; locking resumed.")
