"""An entry's last run, as its own scheduler keeps it."""

from __future__ import annotations

from typing import Any

from celery_etcdlock.beat.due_times import aware, like


def own_last_run(entry: Any) -> float | None:
    """When the entry ran last as its scheduler knows; ``None`` where it has never run there."""
    model = getattr(entry, "model", None)
    moment = entry.last_run_at if model is None else getattr(model, "last_run_at", None)
    if moment is None or (model is None and not entry.total_run_count):
        return None
    return aware(moment).timestamp()


def set_run(entry: Any, last_run_at: float, count: int) -> None:
    """On the entry, and on the database row behind it (django-celery-beat), from which the next one is made."""
    entry.last_run_at = like(entry.last_run_at, last_run_at)
    entry.total_run_count = count
    model = getattr(entry, "model", None)
    if model is not None and hasattr(model, "total_run_count"):
        model.last_run_at = entry.last_run_at
        model.total_run_count = count
