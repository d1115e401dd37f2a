"""Which locks one browser sees: filtered, sorted, and one page of them. Pure.

The server filters and sorts. So a browser never gets more than a page, however many locks there are, and a filter finds
a lock on any page. The timeline uses the same filter and shows the most contended and busiest locks that match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from celery_etcdlock.core.lock_table import LockEntry, contended_first, held_since, lock_as_json

#: Locks on one page, at most and unless the browser says.
MOST_ON_A_PAGE = 100
ON_A_PAGE = 20
#: Owners and waiters of one lock that are listed; the rest is counted.
MOST_OWNERS = 20
MOST_WAITERS = 50
#: Characters of a filter that count.
MOST_FILTER = 200
#: Rows of the timeline, and its bars in all.
MOST_ROWS = 25
MOST_BARS = 1000
#: What a filter searches in a bar.
SEARCHED = ("lock", "task", "about", "task_id", "host")

_SORTS: dict[str, Callable[[Iterable[LockEntry]], list[LockEntry]]] = {
    "contended": contended_first,
    "oldest": lambda locks: sorted(locks, key=lambda lock: (held_since(lock), lock.name)),
    "name": lambda locks: sorted(locks, key=lambda lock: lock.name),
}


@dataclass(frozen=True)
class View:
    """What one browser looks at. ``page`` counts from 1."""

    text: str = ""
    sort: str = "contended"
    page: int = 1
    size: int = ON_A_PAGE

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> View:
        """Raises ``ValueError`` that says what is wrong."""
        sort = query.get("sort") or cls.sort
        if sort not in _SORTS:
            raise ValueError(f"sort must be one of {', '.join(_SORTS)}")
        page, size = _number(query, "page", cls.page), _number(query, "size", cls.size)
        return cls((query.get("filter") or "")[:MOST_FILTER].strip().casefold(), sort, page, min(size, MOST_ON_A_PAGE))


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        raise ValueError(f"{name} must be a whole number from 1 on")
    return int(text)


def page_of(locks: Sequence[LockEntry], view: View) -> tuple[list[LockEntry], int, int]:
    """The locks on the page of ``view``, how many match its filter, and the number of the page: the last, at most."""
    matching = [lock for lock in locks if _matches(lock, view.text)] if view.text else locks
    page = min(view.page, max(1, -(-len(matching) // view.size)))
    start = (page - 1) * view.size
    return _SORTS[view.sort](matching)[start : start + view.size], len(matching), page


def _matches(lock: LockEntry, text: str) -> bool:
    texts = [lock.name]
    for record in lock.records:
        texts += record.task, record.delivery.task_id, record.host, record.about or ""
    return any(text in each.casefold() for each in texts)


def bounded_json(lock: LockEntry, ttls: Mapping[int, float]) -> dict[str, Any]:
    """The lock with the first of its owners and waiters, and how many there are."""
    listed = replace(lock, owners=lock.owners[:MOST_OWNERS], waiters=lock.waiters[:MOST_WAITERS])
    return lock_as_json(listed, ttls) | {"owning": len(lock.owners), "waiting": len(lock.waiters)}


def timeline_of(
    bars: Iterable[dict[str, Any]], locks: Iterable[LockEntry], view: View
) -> tuple[list[dict[str, Any]], int]:
    """Rows of the timeline by name, of the most contended and busiest locks, and how many match the filter."""
    waiting = {lock.name: lock.waiting for lock in locks if lock.waiting}
    rows: dict[str, list[dict[str, Any]]] = {}
    for bar in bars:
        if not view.text or any(view.text in str(bar.get(one) or "").casefold() for one in SEARCHED):
            rows.setdefault(bar["lock"], []).append({name: bar[name] for name in bar if name != "lock"})
    busiest = sorted(rows, key=lambda name: (-waiting.get(name, 0), -len(rows[name]), name))[:MOST_ROWS]
    most = MOST_BARS // max(1, len(busiest))
    shown = [
        {"lock": name, "waiting": waiting.get(name, 0), "holds": len(rows[name]), "bars": rows[name][-most:]}
        for name in sorted(busiest)
    ]
    return shown, len(rows)
