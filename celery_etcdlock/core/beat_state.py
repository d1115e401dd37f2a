"""What a scheduler (celery beat) keeps about its entries in the lock store, so that the next one can continue.

One ``EntryState`` for each entry of the schedule, rewritten with each tick, never deleted by an end of a lease. A
*tick* is one time at which an entry was due; its identity is the entry's name, its schedule and that time. It goes
through these phases. Each is written by the scheduler that holds the beat's lock, in a transaction that this lock
guards and that compares the state as it was read (``operations.SaveStates``)::

    WAITING ---> CLAIMED ---> PUBLISHED      at least once: claimed, sent, confirmed
            `--> PUBLISHED                   at most once: the claim counts as sent
            `--> SKIPPED                     found when it was too old to be caught up with

A tick that the next scheduler finds CLAIMED may have been sent or not. It is sent again under the same task id, so that
whoever runs tasks can tell; with at most once there is no such phase, and what wasn't sent is lost.

Anyone may write under our prefix, so we trust nothing that we read. A state that doesn't parse is no state. One of a
newer version is *unreadable*, and a scheduler that reads it must not schedule: it would send what the newer one has
sent.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import partial
from operator import attrgetter
from typing import Any

from celery_etcdlock.core.json_fields import count, number, optional, text

STATE_VERSION = 1
MAX_STATE_BYTES = 16384
MAX_TEXT_LENGTH = 200

#: Seconds for which the state of an entry that isn't in the schedule any more is kept. So a rolling deploy, in which
#: schedulers with the old and the new schedule take turns, loses no entry's last run.
ABSENT_SECONDS = 3600.0

#: Seconds by which the clocks of two schedulers may differ. Beyond that a last run in the future isn't believed.
FUTURE_SECONDS = 60.0


#: Checks a time: no later than what a ``datetime`` can say.
_time = partial(number, most=1e11)


#: What isn't stored under the name that it has here.
_STORED_AS = {"last_run_at": "last", "due_at": "due", "next_at": "next", "task_id": "id", "absent_since": "absent"}
_FOR_PEOPLE = ("host", "app", "name", "task", "schedule")


class Phase(Enum):
    WAITING = "waiting"
    CLAIMED = "claimed"
    PUBLISHED = "published"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class EntryState:
    """Of one entry. Times are Unix times in seconds, by the wall clock of the scheduler that wrote them.

    ``last_run_at`` and ``count`` are Celery's own ``last_run_at`` and ``total_run_count`` after the latest tick.
    ``due_at`` and ``task_id`` are those of that tick, and ``fence`` the fencing token of who claimed it. ``next_at`` is
    when the entry will be due again. ``absent_since``: a scheduler at work didn't have the entry.
    """

    name: str
    task: str
    schedule: str
    last_run_at: float
    count: int
    phase: Phase = Phase.WAITING
    due_at: float | None = None
    next_at: float | None = None
    task_id: str | None = None
    fence: int = 0
    absent_since: float | None = None


@dataclass(frozen=True, slots=True)
class WorkState:
    """Of the scheduler at work: who it is, since when (Unix time), and how often the work changed hands before."""

    host: str
    pid: int
    since: float
    fence: int
    takeovers: int = 0
    app: str = ""


class Unreadable(Enum):
    """A newer version wrote it."""

    NEWER = "newer"


def encode_state(state: EntryState | WorkState) -> bytes:
    """The state as it is stored. Long texts are cut: they are for people."""
    fields: dict[str, Any] = {"v": STATE_VERSION}
    for name, value in asdict(state).items():
        if value is not None:
            fields[_STORED_AS.get(name, name)] = value[:MAX_TEXT_LENGTH] if name in _FOR_PEOPLE else value
    return json.dumps(fields, separators=(",", ":"), default=attrgetter("value")).encode()


def decode_state(value: bytes) -> EntryState | WorkState | Unreadable | None:
    """What was stored: ``None`` when it is nothing of ours, ``Unreadable`` when a newer version wrote it."""
    if len(value) > MAX_STATE_BYTES:
        return None
    try:
        fields = json.loads(value)
        if not isinstance(fields, dict):
            return None
        version = fields.get("v")
        if type(version) is int and version > STATE_VERSION:
            return Unreadable.NEWER
        if version is not STATE_VERSION:
            return None
        if "host" in fields:
            takeovers, app = count(fields.get("takeovers", 0)), text(fields.get("app", ""))
            host, pid, since = text(fields["host"]), count(fields["pid"]), _time(fields["since"])
            return WorkState(host, pid, since, count(fields["fence"]), takeovers, app)
        return EntryState(
            text(fields["name"]),
            text(fields["task"]),
            text(fields["schedule"]),
            _time(fields["last"]),
            count(fields["count"]),
            Phase(fields["phase"]),
            optional(fields, "due", _time),
            optional(fields, "next", _time),
            optional(fields, "id", text),
            count(fields.get("fence", 0)),
            optional(fields, "absent", _time),
        )
    except (KeyError, ValueError, OverflowError, RecursionError):
        return None


def later_run(state: EntryState, own_last_run: float | None, now: float) -> float | None:
    """The last run to go on from when it isn't the entry's own; ``None``: keep the entry's own.

    ``own_last_run`` is ``None`` where the entry has no last run of its own, or one that is only when it was made: then
    the store's counts. Else the later of the two counts: the entry's own may come from a file of last week, or from a
    database that was written after the store. One that was absent for too long counts as never seen.
    """
    if state.absent_since is not None and now - state.absent_since > ABSENT_SECONDS:
        return None
    return state.last_run_at if own_last_run is None or state.last_run_at > own_last_run else None


def not_from_the_future(state: EntryState, now: float) -> EntryState:
    """A last run far ahead of our clock counts as now: else the entry wouldn't run until that wrong time has come."""
    return replace(state, last_run_at=now) if state.last_run_at > now + FUTURE_SECONDS else state
