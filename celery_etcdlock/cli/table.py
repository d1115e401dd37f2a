"""Locks as a table of text, the same for ``ls`` and ``top``."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from celery_etcdlock.core.description import holder_kind
from celery_etcdlock.core.lock_table import KeyEntry, LockEntry
from celery_etcdlock.core.printable import printable

HEADINGS = ("LOCK", "ABOUT", "OWNER", "TASK", "WHERE", "FOR", "TTL", "WAITING")


def rows_of(locks: Iterable[LockEntry], ttls: Mapping[int, float], now: float | None = None) -> list[tuple[str, ...]]:
    """A row for each owner. ``now`` is Unix time in seconds."""
    now = time.time() if now is None else now
    return [_row(lock, owner, ttls.get(owner.lease), now) for lock in locks for owner in lock.owners]


def _row(lock: LockEntry, owner: KeyEntry, ttl_seconds: float | None, now: float) -> tuple[str, ...]:
    record = owner.key.record
    waiting = str(len(lock.waiters)) if lock.waiters else "-"
    if record is None:
        return printable(lock.name), "-", "unreadable", "-", "-", "-", duration(ttl_seconds), waiting
    by_process = holder_kind(record) == "process"
    return (
        printable(lock.name),
        printable(record.about or "-"),
        # A lock without a task: what it is for stands where a task's name does.
        "-" if by_process else printable(record.delivery.task_id),
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


def cells(text: str) -> int:
    """How wide a terminal draws ``text``."""
    return sum(_cells(each) for each in text) if not text.isascii() else len(text)


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def without_empty(
    headings: Sequence[str], rows: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Without the column ABOUT where no lock has anything to say there: a digest's arguments are rare."""
    column = headings.index("ABOUT")
    if any(row[column] != "-" for row in rows):
        return tuple(headings), list(rows)
    return (*headings[:column], *headings[column + 1 :]), [(*row[:column], *row[column + 1 :]) for row in rows]


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(cells(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    lines = [
        "  ".join(cell + " " * (width - cells(cell)) for cell, width in zip(row, widths, strict=True))
        for row in (headings, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)
