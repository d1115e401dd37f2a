"""Says once that the store is away, not once for each task."""

from __future__ import annotations

import logging

from celery_etcdlock.errors import LockUnavailable

__all__ = ["outage"]

logger = logging.getLogger("celery_etcdlock")


class _Outage:
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


#: One for the process.
outage = _Outage()
