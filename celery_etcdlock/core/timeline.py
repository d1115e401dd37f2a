"""Who held which lock when, over the last minutes: the bars of a Gantt chart. Pure; times are Unix times in seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from celery_etcdlock.core.lock_table import KeyEntry, Kind, Transition

MOST_ENDED = 2000


@dataclass
class _Hold:
    entry: KeyEntry
    began: float
    ended: float | None = None


class Timeline:
    """The holds of the last ``seconds``, at most ``MOST_ENDED`` of those that ended."""

    def __init__(self, seconds: float = 600.0) -> None:
        self.seconds = seconds
        self._going_on: dict[tuple[str, str], _Hold] = {}
        self._ended: deque[_Hold] = deque(maxlen=MOST_ENDED)

    def apply(self, happening: Transition, now: float) -> None:
        entry = happening.entry
        if happening.kind is Kind.ACQUIRED:
            # One that waited is owner only from now on, whatever its record says of when it came.
            self._going_on[entry.name, entry.key.token] = _Hold(entry, now)
        elif happening.kind is Kind.RELEASED:
            self._end((entry.name, entry.key.token), now)

    def restart(self, owners: list[KeyEntry], now: float) -> None:
        """Changes were missed: these own their locks now, and those that aren't among them ended at some time."""
        there = {(entry.name, entry.key.token): entry for entry in owners}
        for key in [key for key in self._going_on if key not in there]:
            self._end(key, now)
        for key, entry in there.items():
            if key not in self._going_on:
                # Since when the record says, unless its clock is ahead of ours.
                record = entry.key.record
                self._going_on[key] = _Hold(entry, now if record is None else min(record.since, now))

    def _end(self, key: tuple[str, str], now: float) -> None:
        hold = self._going_on.pop(key, None)
        if hold is not None:
            hold.ended = now
            self._ended.append(hold)

    def bars(self, now: float) -> list[dict[str, Any]]:
        """Every hold that reaches into the last ``seconds``, for JSON."""
        since = now - self.seconds
        while self._ended and (self._ended[0].ended or now) < since:
            self._ended.popleft()
        return [_bar(hold) for hold in (*self._ended, *self._going_on.values())]


def _bar(hold: _Hold) -> dict[str, Any]:
    record = hold.entry.key.record
    return {
        "lock": hold.entry.name,
        **{name: getattr(record, name, None) for name in ("task", "about", "host")},
        "task_id": None if record is None else record.delivery.task_id,
        "began": round(hold.began, 3),
        "ended": None if hold.ended is None else round(hold.ended, 3),
    }
