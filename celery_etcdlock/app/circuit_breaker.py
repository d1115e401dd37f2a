"""What a process knows of an outage: logged once, not per task, and not waited out by each task anew.

States: *well*; *unreachable*, after a refused connection, or two requests in a row without an answer. While it is
unreachable one caller at a time tries the store, with a pause in between. All others get the last error at once. So a
web process doesn't hang at each call of a task, and locked tasks don't fill a worker's slots with waiting.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from celery_etcdlock.core.settings import Settings
from celery_etcdlock.errors import LockUnavailable

logger = logging.getLogger("celery_etcdlock")

WHAT_TASKS_DO = {
    "retry": "aren't lost: they are retried with growing delays until etcd answers",
    "raise": "fail with LockUnavailable",
    "run": "run without a lock",
}


class CircuitBreaker:
    """One for each app in each process. A forked child starts with what its parent knew."""

    def __init__(self, settings: Callable[[], Settings], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._mutex = threading.Lock()
        self._is_logged = False
        self._unanswered = 0
        self._found: LockUnavailable | None = None
        self._try_again_at = 0.0

    def check(self) -> None:
        """Return if the store should be asked now. Raises ``LockUnavailable``, with the last error, if not."""
        if self._found is None:
            return
        with self._mutex:
            found, now = self._found, self._monotonic()
            if found is None:
                return
            if now >= self._try_again_at:
                # This caller tries. Until it knows, and for as long again, nobody else does.
                self._try_again_at = now + 2 * self._settings().timeout
                return
            pause = self._try_again_at - now
        raise LockUnavailable(f"{found} (cached failure; next attempt within {pause:.1f} s)", permanent=found.permanent)

    def tell(self, error: LockUnavailable) -> None:
        """An attempt failed. What ``check`` raised is no news."""
        settings = self._settings()
        with self._mutex:
            if self._found is None:
                self._unanswered += 1
                # One request without an answer may be an accident.
                if not error.maybe_applied or self._unanswered > 1:
                    self._found = error
                    self._try_again_at = self._monotonic() + settings.timeout
            if self._is_logged:
                return
            self._is_logged = True
        logger.warning(
            "celery-etcdlock can't acquire locks: %s. Locked tasks %s. Check etcd and the settings "
            "etcdlock_endpoints and etcdlock_timeout (%g s). "
            "etcdlock_on_unavailable changes what tasks do. This is logged once per outage and process.",
            error,
            WHAT_TASKS_DO[settings.on_unavailable],
            settings.timeout,
        )

    def over(self) -> None:
        """An attempt was answered."""
        if not self._unanswered:
            return
        with self._mutex:
            self._unanswered = 0
            self._found = None
            was_logged, self._is_logged = self._is_logged, False
        if was_logged:
            logger.warning("celery-etcdlock: etcd is reachable again; locking resumed.")
