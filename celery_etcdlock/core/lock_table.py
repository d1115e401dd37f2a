"""All locks under a prefix, as an operator sees them: keys grouped into locks, and what a change means.

Pure: a snapshot (``KeyEntry`` for every key) makes a ``LockTable``; each change that is watched after it updates the
table and says what happened in words that people use. Who owns a lock is decided as everywhere (``ownership``): the
first ``limit`` keys by ``create_revision``.

A deletion looks the same whether the holder released, its lease ended or an admin deleted the key, so all of them are
``gone`` here; the holder itself knows which (its log, its signals).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from celery_etcdlock.core.description import holder_kind, in_words
from celery_etcdlock.core.expiry import seems_expired
from celery_etcdlock.core.name_escaping import escape_name, unescape_name
from celery_etcdlock.core.ownership import Key, owners
from celery_etcdlock.core.printable import printable
from celery_etcdlock.core.record import Record
from celery_etcdlock.core.waiting_counts import NONE, WaitingCount, WaitingCounts


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key under a lock's name.

    ``segment`` is the name as it is in the store, where a long one is cut; then ``name`` is what is left of it.
    """

    name: str
    segment: str
    key: Key


@dataclass(frozen=True, slots=True)
class LockEntry:
    """A lock that somebody holds or waits for. ``owners`` and ``waiters`` in order of arrival.

    ``others`` wait without a queue position (``core.waiting_counts``). A lock with nothing but ``others`` is free: they
    will come back for it.
    """

    name: str
    owners: tuple[KeyEntry, ...]
    waiters: tuple[KeyEntry, ...]
    others: WaitingCount = NONE

    @property
    def records(self) -> list[Record]:
        """Of all who own it or wait for it, where they can be read."""
        return [entry.key.record for entry in self.owners + self.waiters if entry.key.record is not None]

    @property
    def waiting(self) -> int:
        """How many wait, in whichever way."""
        return len(self.waiters) + self.others.total


@dataclass(frozen=True, slots=True)
class Change:
    """One change under the prefix: ``entry`` was written, or (``gone``) deleted. ``entry.key`` is as it was last."""

    entry: KeyEntry
    gone: bool


@dataclass(frozen=True, slots=True)
class Traces:
    """``used``: a worker was started with the prefix once, or anything is there. ``others``: a few others in use."""

    used: bool
    others: tuple[str, ...] = ()


class SnapshotOutdated(Exception):
    """Changes were missed, because the store forgets old ones: take a new snapshot."""


class Kind(Enum):
    ACQUIRED = "acquired"
    WAITING = "waiting"
    RELEASED = "released"
    GAVE_UP = "gave up waiting"


@dataclass(frozen=True, slots=True)
class Transition:
    kind: Kind
    entry: KeyEntry


class LockTable:
    """Every lock, kept up to date by ``apply``."""

    def __init__(self, entries: Iterable[KeyEntry] = (), counts: WaitingCounts | None = None) -> None:
        #: Of messages that wait without a queue position. May be replaced at any time.
        self.counts = counts or WaitingCounts()
        #: By segment: two names that were cut may look alike.
        self._names: dict[str, dict[str, KeyEntry]] = {}
        for entry in entries:
            self._names.setdefault(entry.segment, {})[entry.key.token] = entry

    def forget_those_over(self, wall_time: float) -> bool:
        """Drop the keys that have expired, though nobody has deleted them yet. Returns whether there were any."""
        every = (entry for entries in self._names.values() for entry in entries.values())
        over = [entry for entry in every if seems_expired(entry.key, wall_time)]
        for entry in over:
            del self._names[entry.segment][entry.key.token]
            if not self._names[entry.segment]:
                del self._names[entry.segment]
        return bool(over)

    def locks(self, pattern: str | None = None) -> list[LockEntry]:
        """All locks by name; with ``pattern``, those whose name or task matches it."""
        segments = self._names.keys() | self.counts.of.keys()
        found = sorted((self._lock(segment) for segment in segments), key=lambda lock: lock.name)
        return found if pattern is None else [lock for lock in found if matching(lock, pattern)]

    def named(self, name: str) -> list[LockEntry]:
        """The lock of this name, however long it is; else those that are shown so (``core.printable``)."""
        if not name:
            return []
        for segment in (escape_name(name), name):
            if segment in self._names or segment in self.counts.of:
                return [self._lock(segment)]
        return [lock for lock in self.locks() if printable(lock.name) == name]

    def of_task(self, task_id: str) -> list[LockEntry]:
        """The locks that a task of this id holds or waits for."""
        return [lock for lock in self.locks() if task_id in {record.delivery.task_id for record in lock.records}]

    def apply(self, change: Change) -> Transition:
        """Take ``change`` in, and say what it means. A waiter counts as owner once its own key was rewritten."""
        segment, token = change.entry.segment, change.entry.key.token
        entries = self._names.setdefault(segment, {})
        if not change.gone:
            entries[token] = change.entry
            owns = change.entry in self._lock(segment).owners
            return Transition(Kind.ACQUIRED if owns else Kind.WAITING, change.entry)
        owned = entries.get(token) in self._lock(segment).owners
        before = entries.pop(token, change.entry)
        if not entries:
            del self._names[segment]
        return Transition(Kind.RELEASED if owned else Kind.GAVE_UP, before)

    def _lock(self, segment: str) -> LockEntry:
        entries = sorted(self._names.get(segment, {}).values(), key=lambda entry: entry.key.create_revision)
        number = len(owners(entry.key for entry in entries))
        name = entries[0].name if entries else unescape_name(segment)
        others = self.counts.of.get(segment, NONE)
        return LockEntry(name, tuple(entries[:number]), tuple(entries[number:]), others)


def contended_first(locks: Iterable[LockEntry]) -> list[LockEntry]:
    """Most waiters first, then the longest held; a holder whose record can't be read counts as held for longest."""
    return sorted(locks, key=lambda lock: (-lock.waiting, held_since(lock), lock.name))


def held_since(lock: LockEntry) -> float:
    """Unix time in seconds; 0 where no record says, and never where nobody holds it."""
    if not lock.owners:
        return math.inf
    record = lock.owners[0].key.record
    return 0.0 if record is None else record.since


def number_held(locks: Iterable[LockEntry]) -> int:
    return sum(1 for lock in locks if lock.owners)


def matching(lock: LockEntry, pattern: str) -> bool:
    """Whether the lock's name, or the task of one of its owners, matches a pattern such as ``reports.*``."""
    tasks = [entry.key.record.task for entry in lock.owners if entry.key.record is not None]
    return any(fnmatchcase(text, pattern) or fnmatchcase(text, f"{pattern}:*") for text in (lock.name, *tasks))


def described(entry: KeyEntry, ttl_seconds: float | None = None) -> dict[str, Any]:
    """A key for ``--json`` and the web page. Of a task's arguments it has what the record shows (``core.about``)."""
    record = entry.key.record
    facts: dict[str, Any] = {
        "token": entry.key.token,
        "fencing_token": entry.key.mod_revision,
        "lease": f"{entry.key.lease:x}",
        "ttl_seconds": ttl_seconds,
    }
    if record is None:
        return facts | {"task_id": None, "readable": False, "who": in_words(record)}
    kind = holder_kind(record)
    as_written = ("task", "about", "host", "pid", "since", "limit", "broker", "until")
    return facts | {
        "readable": True,
        "who": in_words(record),
        "by": kind,
        "kind": record.kind.value,
        "task_id": None if kind == "process" else record.delivery.task_id,
        "retries": record.delivery.retries,
        **{name: getattr(record, name) for name in as_written},
    }


def lock_as_json(lock: LockEntry, ttls: Mapping[int, float]) -> dict[str, Any]:
    """A lock for ``--json`` and the web page."""
    return {
        "lock": lock.name,
        "owners": [described(entry, ttls.get(entry.key.lease)) for entry in lock.owners],
        "waiters": [described(entry, ttls.get(entry.key.lease)) for entry in lock.waiters],
        "retrying": lock.others.retrying,
        "joining": lock.others.joining,
    }
