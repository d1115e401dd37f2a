"""All locks under a prefix, as an operator sees them: places grouped into locks, and what a change means.

Pure: a survey (``Place`` for every key) makes a ``Board``; each change that is watched after it updates the board and
says what happened in words that people use. Who owns a lock is decided as everywhere (``ownership``): the first
``limit`` places by ``create_revision``.

A deletion looks the same whether the holder released, its lease ended or an admin deleted the key, so all of them are
``gone`` here; the holder itself knows which (its log, its signals).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from celery_etcdlock.core.ends import seems_over
from celery_etcdlock.core.ownership import Key, owners

__all__ = ["Board", "Change", "Happening", "HeldLock", "Kind", "Place", "SurveyOutdated", "described", "matching"]


@dataclass(frozen=True, slots=True)
class Place:
    """One key under a lock's name, and the lease that it hangs on (0: none).

    ``segment`` is the name as it is in the store; a long name is cut there, and then ``name`` is too.
    """

    name: str
    segment: str
    key: Key
    lease: int


@dataclass(frozen=True, slots=True)
class HeldLock:
    """A lock that somebody holds or waits for. Both in order of arrival."""

    name: str
    owners: tuple[Place, ...]
    waiters: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One change under the prefix: ``place`` was written, or (``gone``) deleted. ``place.key`` is as it was last."""

    place: Place
    gone: bool
    revision: int


class SurveyOutdated(Exception):
    """Changes were missed, because the store forgets old ones: survey anew."""


class Kind(Enum):
    ACQUIRED = "acquired"
    WAITING = "waiting"
    RELEASED = "released"
    GAVE_UP = "gave up waiting"


@dataclass(frozen=True, slots=True)
class Happening:
    kind: Kind
    place: Place


class Board:
    """Every lock, kept up to date by ``apply``."""

    def __init__(self, places: Iterable[Place] = ()) -> None:
        self._names: dict[str, dict[str, Place]] = {}
        for place in places:
            self._names.setdefault(place.name, {})[place.key.token] = place

    def forget_those_over(self, wall_time: float) -> None:
        """Drop the places whose time is over: nobody holds them, though whoever meets them has yet to delete them."""
        for name, places in list(self._names.items()):
            for token in [token for token, place in places.items() if seems_over(place.key, wall_time)]:
                del places[token]
            if not places:
                del self._names[name]

    def locks(self, pattern: str | None = None) -> list[HeldLock]:
        """All locks by name; with ``pattern``, those whose name or task matches it."""
        found = [self._lock(name) for name in sorted(self._names)]
        return found if pattern is None else [lock for lock in found if matching(lock, pattern)]

    def find(self, name_or_task_id: str) -> list[HeldLock]:
        """The lock of this name; else those that a task of this id holds or waits for."""
        if name_or_task_id in self._names:
            return [self._lock(name_or_task_id)]
        return [
            lock for lock in self.locks() if any(_task_id(p) == name_or_task_id for p in lock.owners + lock.waiters)
        ]

    def apply(self, change: Change) -> list[Happening]:
        """Take ``change`` in. Who moved up because somebody went is told too, once its own key says so."""
        name, token = change.place.name, change.place.key.token
        before = self._names.get(name, {}).get(token)
        owned_before = before is not None and before in self._lock(name).owners
        if change.gone:
            places = self._names.get(name, {})
            places.pop(token, None)
            if not places:
                self._names.pop(name, None)
            return [Happening(Kind.RELEASED if owned_before else Kind.GAVE_UP, before or change.place)]
        self._names.setdefault(name, {})[token] = change.place
        owns = change.place in self._lock(name).owners
        return [Happening(Kind.ACQUIRED if owns else Kind.WAITING, change.place)]

    def _lock(self, name: str) -> HeldLock:
        places = sorted(self._names[name].values(), key=lambda place: place.key.create_revision)
        number = len(owners(place.key for place in places))
        return HeldLock(name, tuple(places[:number]), tuple(places[number:]))


def matching(lock: HeldLock, pattern: str) -> bool:
    """Whether the lock's name, or the task of one of its owners, matches a pattern such as ``reports.*``."""
    tasks = [place.key.record.task for place in lock.owners if place.key.record is not None]
    return any(fnmatchcase(text, pattern) or fnmatchcase(text, f"{pattern}:*") for text in (lock.name, *tasks))


def described(place: Place, ttl_seconds: float | None = None) -> dict[str, Any]:
    """A place for ``--json`` and the web page. Arguments of tasks are nowhere in it."""
    record = place.key.record
    facts: dict[str, Any] = {
        "token": place.key.token,
        "fencing_token": place.key.mod_revision,
        "lease": f"{place.lease:x}",
        "ttl_seconds": ttl_seconds,
    }
    if record is None:
        return facts | {"task_id": None, "readable": False}
    return facts | {
        "readable": True,
        "task_id": record.delivery.task_id,
        "retries": record.delivery.retries,
        "task": record.task,
        "host": record.host,
        "pid": record.pid,
        "since": record.since,
        "limit": record.limit,
        "broker": record.broker,
        "until": record.until,
    }


def _task_id(place: Place) -> str | None:
    return None if place.key.record is None else place.key.record.delivery.task_id
