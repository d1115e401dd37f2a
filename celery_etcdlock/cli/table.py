"""Locks as a table of text, the same for ``ls`` and ``top``."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from celery_etcdlock.core.description import holder_kind
from celery_etcdlock.core.lock_table import KeyEntry, LockEntry
from celery_etcdlock.core.printable import printable
from celery_etcdlock.core.waiting_counts import NONE, WaitingCount

HEADINGS = ("LOCK", "ABOUT", "OWNER", "TASK", "WHERE", "FOR", "TTL", "WAITING", "RETRY", "JOIN")
#: How many wait, in each of the ways. WAITING is the queue, and always there.
WAITS = ("WAITING", "RETRY", "JOIN")
#: Columns that are left out where they have nothing to say: few locks need them.
RARE = ("ABOUT", "RETRY", "JOIN")
NOBODY = "nobody"


def table_of(
    locks: Iterable[LockEntry], ttls: Mapping[int, float], *, now: float | None = None, most: int | None = None
) -> tuple[list[str], list[list[str]]]:
    """The headings, and ``most`` rows: one for each owner, and for a lock that is only waited for. ``now``: Unix time.

    Without the ``RARE`` columns where no row has anything to say.
    """
    now = time.time() if now is None else now
    rows = list(islice((_row(lock, owner, ttls, now) for lock in locks for owner in lock.owners or (None,)), most))
    kept = [at for at, name in enumerate(HEADINGS) if name not in RARE or any(row[at] != "-" for row in rows)]
    return [HEADINGS[at] for at in kept], [[row[at] for at in kept] for row in rows]


def _row(lock: LockEntry, owner: KeyEntry | None, ttls: Mapping[int, float], now: float) -> tuple[str, ...]:
    waits = tuple(str(number or "-") for number in (len(lock.waiters), lock.others.retrying, lock.others.joining))
    if owner is None:
        return printable(lock.name), "-", NOBODY, "-", "-", "-", "-", *waits
    record, ttl_seconds = owner.key.record, ttls.get(owner.key.lease)
    if record is None:
        return printable(lock.name), "-", "unreadable", "-", "-", "-", duration(ttl_seconds), *waits
    by_process = holder_kind(record) == "process"
    return (
        printable(lock.name),
        printable(record.about or "-"),
        # A lock without a task has what it is for in the column of the task's name.
        "-" if by_process else printable(record.delivery.task_id),
        printable(record.task),
        f"{printable(record.host)}:{record.pid}",
        duration(max(0.0, now - record.since)),
        duration(ttl_seconds),
        *waits,
    )


def waits_in_words(locks: Iterable[LockEntry], others: WaitingCount = NONE) -> str:
    """``2 waiting, 5 retrying, 1 joining``, of all these locks, and ``others`` beside them."""
    waiting = 0
    for lock in locks:
        waiting += len(lock.waiters)
        others += lock.others
    more = [(others.retrying, "retrying"), (others.joining, "joining")]
    return ", ".join([f"{waiting} waiting", *(f"{number} {how}" for number, how in more if number)])


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
    if text.isascii():
        return len(text)
    visible = (each for each in text if not unicodedata.combining(each))
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in visible)


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(cells(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    lines = [
        "  ".join(cell + " " * (width - cells(cell)) for cell, width in zip(row, widths, strict=True))
        for row in (headings, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)
