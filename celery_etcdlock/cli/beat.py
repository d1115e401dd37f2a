"""How ``ls`` shows beats: who is at work, who stands by, and each entry's last and next tick."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery_etcdlock.cli.table import duration, text_table
from celery_etcdlock.core.beat_state import EntryState
from celery_etcdlock.core.beat_view import BeatView, beat_as_json
from celery_etcdlock.core.lock_table import KeyEntry
from celery_etcdlock.core.printable import printable

HEADINGS = ("ENTRY", "TASK", "SCHEDULE", "LAST", "NEXT", "RUNS", "STATE")
#: More entries than that aren't printed; ``--json`` has all.
MOST_ENTRIES = 100
MOST_STANDBYS = 5


def beat_text(view: BeatView, now: float) -> str:
    """``now`` is Unix time."""
    lines = [f"{printable(view.name)}: {_at_work(view, now)}; {_standing_by(view)}"]
    if view.unreadable:
        lines.append(f"{view.unreadable} states can't be read: a newer version wrote them")
    if view.entries:
        lines.append(text_table(HEADINGS, [_row(one, now) for one in view.entries[:MOST_ENTRIES]]))
    if len(view.entries) > MOST_ENTRIES:
        lines.append(f"... and {len(view.entries) - MOST_ENTRIES} more entries (--json shows all)")
    return "\n".join(lines)


def with_beats(locks: Iterable[dict[str, Any]], beats: Iterable[BeatView]) -> list[dict[str, Any]]:
    """The locks, those of beats with what is known of them; a beat that nobody holds comes last."""
    found = {lock["lock"]: lock for lock in locks}
    for beat in beats:
        empty = {"lock": beat.name, "owners": [], "waiters": []}
        found.setdefault(beat.name, empty)["beat"] = beat_as_json(beat)
    return list(found.values())


def _at_work(view: BeatView, now: float) -> str:
    if view.owner is None:
        return "no beat is at work, nothing is scheduled"
    text = f"{_where(view.owner)} is at work"
    if view.work is not None:
        text += f" for {duration(max(0.0, now - view.work.since))}, {view.work.takeovers} takeovers before"
    return text


def _standing_by(view: BeatView) -> str:
    if not view.standbys:
        return "nobody stands by"
    first = ", ".join(_where(entry) for entry in view.standbys[:MOST_STANDBYS])
    more = len(view.standbys) - MOST_STANDBYS
    return f"standing by: {first}" + (f" and {more} more" if more > 0 else "")


def _where(entry: KeyEntry) -> str:
    record = entry.key.record
    return "somebody unreadable" if record is None else f"{printable(record.host)}:{record.pid}"


def _row(one: EntryState, now: float) -> tuple[str, ...]:
    last = f"{duration(max(0.0, now - one.last_run_at))} ago" if one.count else "-"
    following = "-"
    if one.next_at is not None:
        following = ("in " if one.next_at >= now else "overdue ") + duration(abs(one.next_at - now))
    names = (printable(one.name), printable(one.task), printable(one.schedule))
    return (*names, last, following, str(one.count), one.phase.value)
