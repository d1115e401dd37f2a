"""When something is due, as Celery says it: a datetime, its text, or a number of seconds."""

from __future__ import annotations

import time
from datetime import datetime, timezone


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
