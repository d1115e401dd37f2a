"""When an entry ran last, when it was due, and whether that was too long ago: what Celery knows and doesn't say."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from typing import Any

logger = logging.getLogger("celery_etcdlock")


def aware(moment: datetime) -> datetime:
    """As Celery understands it: a time without a zone is UTC."""
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment


def described(schedule: Any) -> str:
    """A schedule for people."""
    period = getattr(schedule, "run_every", None)
    return f"every {period.total_seconds():g} s" if isinstance(period, timedelta) else repr(schedule)


def due_at(schedule: Any, last_run_at: datetime, now: datetime) -> float | None:
    """The Unix time at which an entry that ran last at ``last_run_at`` was or will be due; ``None``: it doesn't say."""
    try:
        # The same schedule with its clock stopped: times come out the same whenever they are asked for.
        stopped: Any = object.__new__(type(schedule))
        stopped.__dict__.update(schedule.__dict__)
        stopped.nowfun = lambda: now
        left = stopped.remaining_estimate(aware(last_run_at))
        return None if left is None else aware(now).timestamp() + float(left.total_seconds())
    except Exception as error:
        # A schedule of a user's own may have no estimate: then a tick is known by the run before it.
        logger.debug("celery-etcdlock: %r doesn't say when it was due: %r", schedule, error)
        return None


def is_too_old(schedule: Any, due: float | None, now: datetime, catch_up_seconds: float | None) -> bool:
    """Whether the latest time at which it was due lies more than ``catch_up_seconds`` back."""
    if catch_up_seconds is None or due is None:
        return False
    late = aware(now).timestamp() - due
    if late <= catch_up_seconds:
        return False
    period = getattr(schedule, "run_every", None)
    if isinstance(period, timedelta) and period.total_seconds() > 0:
        return late % period.total_seconds() > catch_up_seconds
    # If the next time after then is still to come, there was none since then.
    following = due_at(schedule, aware(now) - timedelta(seconds=catch_up_seconds), now)
    return following is not None and following > aware(now).timestamp()


def own_last_run(entry: Any) -> float | None:
    """When the entry ran last as its scheduler knows; ``None`` where it has never run there."""
    model = getattr(entry, "model", None)
    moment = entry.last_run_at if model is None else getattr(model, "last_run_at", None)
    if moment is None or (model is None and not entry.total_run_count):
        return None
    return aware(moment).timestamp()


def set_run(entry: Any, last_run_at: float, count: int) -> None:
    """On the entry, and on the database row behind it (django-celery-beat), from which the next one is made."""
    zone = entry.last_run_at.tzinfo  # as it has one, or none
    entry.last_run_at = datetime.fromtimestamp(last_run_at, zone or timezone.utc).replace(tzinfo=zone)
    entry.total_run_count = count
    model = getattr(entry, "model", None)
    if model is not None and hasattr(model, "total_run_count"):
        model.last_run_at = entry.last_run_at
        model.total_run_count = count
