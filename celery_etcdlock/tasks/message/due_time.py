"""When something is due, as Celery says it: a datetime, its text, or a number of seconds."""

from __future__ import annotations

import time
from datetime import datetime, timezone

#: Seconds that a message keeps its lock after it is due.
PENDING_SECONDS = 3600.0


def seconds_until(when: object) -> float | None:
    """Seconds from now by this host's wall clock, at least 0; ``None`` where nothing is said that we know."""
    if isinstance(when, str):
        try:
            when = datetime.fromisoformat(when.replace("Z", "+00:00"))
        except ValueError:
            return None
    if isinstance(when, datetime):
        due = when if when.tzinfo is not None else when.replace(tzinfo=timezone.utc)
        return max(0.0, due.timestamp() - time.time())
    return float(when) if isinstance(when, int | float) else None


def in_iso_format(when: object, seconds: float) -> str:
    """The same as text; ``seconds`` is how far off it is, where it isn't one yet."""
    if isinstance(when, str):
        return when
    return datetime.fromtimestamp(time.time() + seconds, timezone.utc).isoformat()


def message_seconds(pending_ttl: float | None, due: float, expires: object) -> float:
    """For how many seconds from now a lock stands for a message that is ``due`` in so many, a call or a retry.

    A message that has expired never starts, and a broker may drop it (RabbitMQ does) so that no worker meets it.
    """
    left = seconds_until(expires)
    if left is None:
        return due + (PENDING_SECONDS if pending_ttl is None else pending_ttl)
    return max(1.0, left if pending_ttl is None else min(left, due + pending_ttl))
