"""Lock figures of a whole worker, kept where its MainProcess can read them at once: counts, and the locks held now.

Each process of the pool writes into a slot of its own, in memory that is mapped before the fork. So nothing is sent,
and a reader asks nobody. A slot has the writer's pid, a count for each kind of event, and a text with the locks that it
holds. When a process is replaced, its counts go on in its successor; the text is the living process's.

A reader may see a text half-written; then it isn't JSON, and it looks again.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from typing import Any

from billiard.process import current_process

from celery_etcdlock.core import events as lock_events
from celery_etcdlock.native import allocate_mutex, process_lives

COUNTS: dict[type, str] = {
    lock_events.LockAcquired: "acquired",
    lock_events.LockReleased: "released",
    lock_events.LockConflicted: "conflicts",
    lock_events.LockWasLost: "lost",
    lock_events.TaskDeduplicated: "deduplicated",
}
_ORDER = tuple(COUNTS)
_HEAD = struct.Struct(f"<{len(COUNTS) + 2}q")  # pid, counts, bytes of text
SLOT_BYTES = 8192
MOST_TEXT_BYTES = SLOT_BYTES - _HEAD.size
#: Tries to read a text that is being written.
TRIES = 5


class Figures:
    """A ``Listener``. ``slots``: the largest number of processes that the pool will have; 1 where it has none."""

    def __init__(self, slots: int = 1) -> None:
        self._slots = max(1, slots)
        self._memory = mmap.mmap(-1, self._slots * SLOT_BYTES)
        self._pid = 0
        self._start = 0
        self._mutex = allocate_mutex()
        self._counts: list[int] = []
        self._held: dict[tuple[str, int], dict[str, Any]] = {}

    def __call__(self, event: lock_events.LockEvent, /) -> None:
        kind = type(event)
        if kind not in COUNTS:
            return
        if self._pid != os.getpid():
            self._begin()
        with self._mutex:
            self._counts[_ORDER.index(kind)] += 1
            if isinstance(event, lock_events.LockAcquired):
                self._held[event.name, event.fencing_token] = {
                    "lock": event.name,
                    "about": event.record.about,
                    "task": event.record.task,
                    "id": event.record.delivery.task_id,
                    "pid": self._pid,
                    "since": event.record.since,
                    "fencing_token": event.fencing_token,
                }
            elif isinstance(event, lock_events.LockReleased | lock_events.LockWasLost):
                self._held.pop((event.name, event.fencing_token), None)
            self._write()

    def counts(self) -> dict[str, int]:
        """How often each thing has happened since the worker's start, in all its processes."""
        totals = [0] * len(COUNTS)
        for slot in range(self._slots):
            _, *counts, _ = _HEAD.unpack_from(self._memory, slot * SLOT_BYTES)
            totals = [total + count for total, count in zip(totals, counts, strict=True)]
        return dict(zip(COUNTS.values(), totals, strict=True))

    def held(self) -> list[dict[str, Any]]:
        """The locks that living processes of this worker hold, oldest first."""
        found = [lock for slot in range(self._slots) for lock in self._held_in(slot)]
        return sorted(found, key=lambda lock: float(lock["since"]))

    def _held_in(self, slot: int) -> list[dict[str, Any]]:
        for _ in range(TRIES):
            start = slot * SLOT_BYTES
            pid, *_, length = _HEAD.unpack_from(self._memory, start)
            if not length or not process_lives(pid):
                return []
            text = self._memory[start + _HEAD.size : start + _HEAD.size + min(length, MOST_TEXT_BYTES)]
            try:
                held: list[dict[str, Any]] = json.loads(text)
            except ValueError:
                continue
            return held
        return []

    def _begin(self) -> None:
        """This process's slot, in the child of a prefork pool by the index that the pool gave it."""
        index = getattr(current_process(), "index", 0)
        self._start = (index if 0 <= index < self._slots else 0) * SLOT_BYTES
        self._mutex = allocate_mutex()
        self._held = {}
        _, *self._counts, _ = _HEAD.unpack_from(self._memory, self._start)
        self._pid = os.getpid()

    def _write(self) -> None:
        held = list(self._held.values())
        text = b"" if not held else json.dumps(held).encode()
        while len(text) > MOST_TEXT_BYTES:
            held = held[: len(held) // 2]
            text = json.dumps(held).encode()
        _HEAD.pack_into(self._memory, self._start, self._pid, *self._counts, 0)
        body = self._start + _HEAD.size
        self._memory[body : body + len(text)] = text
        _HEAD.pack_into(self._memory, self._start, self._pid, *self._counts, len(text))
