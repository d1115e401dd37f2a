"""Locks as a table of text, the same for ``ls`` and ``top``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from celery_etcdlock.core.lock_table import KeyEntry, LockEntry

__all__ = ["HEADINGS", "duration", "printable", "rows_of", "text_table"]

HEADINGS = ("LOCK", "OWNER", "TASK", "WHERE", "FOR", "TTL", "WAITING")


def rows_of(locks: Iterable[LockEntry], ttls: Mapping[int, float], now: float | None = None) -> list[tuple[str, ...]]:
    """A row for each owner. ``now`` is Unix time in seconds."""
    now = time.time() if now is None else now
    return [_row(lock, owner, ttls.get(owner.lease), now) for lock in locks for owner in lock.owners]


def _row(lock: LockEntry, owner: KeyEntry, ttl_seconds: float | None, now: float) -> tuple[str, ...]:
    record = owner.key.record
    waiting = str(len(lock.waiters)) if lock.waiters else "-"
    if record is None:
        return printable(lock.name), "unreadable", "-", "-", "-", duration(ttl_seconds), waiting
    return (
        printable(lock.name),
        printable(record.delivery.task_id),
        printable(record.task),
        f"{printable(record.host)}:{record.pid}",
        duration(max(0.0, now - record.since)),
        duration(ttl_seconds),
        waiting,
    )


def duration(seconds: float | None) -> str:
    """``4s``, ``3m05s``, ``2h07m``, ``3d04h``."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def printable(text: str) -> str:
    """Without control characters: whoever may write under the prefix must not write to the operator's terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (headings, *rows)]
    return "\n".join(line.rstrip() for line in lines)
