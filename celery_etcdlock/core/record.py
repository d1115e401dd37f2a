"""What is stored under a lock: who holds it, as strict JSON with a version.

The record says what a key is and whose (``key_kinds`` says who may do what with it) and explains a lock to people. It
never decides who owns the lock: revisions do (``ownership``). Anyone can write under our prefix, so we trust nothing
that we read. A record that doesn't parse, is too large, or has a version or kind that we don't know is ``None``. A key
with such a record counts as *held by someone else*: the cautious answer is the safe one.

*Versions.* Records written before there were kinds are read by their flags (``handed_over``, ``in_line``, ``until``),
and these are still written, for older workers of a rolling upgrade.

A lock needs only the digest of its task's arguments. The record has them in short, for people, unless they may be
secret (``core.about``).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache
from typing import Any

from celery_etcdlock.core.json_fields import count, number, optional, pair, several, text

RECORD_VERSION = 1
MAX_RECORD_BYTES = 8192
#: Bytes of a text for people, as JSON; what is longer is cut.
MAX_TEXT_BYTES = 512
#: Bytes of a task id, as JSON. An id is never cut, for it says whose a key is: a longer one is stored as its digest.
MAX_ID_BYTES = 4096
DIGEST_PREFIX = "sha256:"
#: Decoded records that are cached: a waiter in a long queue reads the same ones again and again.
REMEMBERED_RECORDS = 2048

_as_json = json.JSONEncoder(separators=(",", ":")).encode
_quoted = json.encoder.encode_basestring_ascii

#: What the task id begins with where a task was called as a function, and where there is no task at all.
DIRECT_PREFIX = "direct-"
STANDALONE_PREFIX = "no task, "


class KeyKind(Enum):
    """What a key under a lock's name is; ``key_kinds`` has the table of who may do what with it."""

    #: A process's own, on the lease that it renews: it holds the lock, or waits for it.
    HELD = "held"
    #: Taken for a message when it was published, and kept until the message starts.
    CLAIM = "claim"
    #: The queue position of a message that waits.
    POSITION = "position"
    #: Left by a run that ended in a retry or a replacement, for the run that follows.
    HANDOVER = "handover"
    #: Kept for the rest of ``lock_at_least_for``; belongs to nobody any more.
    LEAST_HOLD = "least hold"
    #: A fixed window (``until_expired``).
    WINDOW = "window"


#: Which run of a message: retries, replacements.
Step = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Delivery:
    """The owner of a lock: one delivery of one task (rule 6 of the protocol).

    A retry raises ``retries`` and ``Task.replace`` raises ``replacements``, both under the same task id;
    ``comebacks`` counts how often we ourselves sent the message back to its queue. Equal deliveries are
    copies of one message; different ones with one task id follow each other.
    """

    task_id: str
    retries: int = 0
    replacements: int = 0
    comebacks: int = 0
    #: Random for each call of a task: tells two calls under one task id apart, of which only one has run.
    call: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if 6 * len(self.task_id) > MAX_ID_BYTES and len(json.dumps(self.task_id)) > MAX_ID_BYTES:
            digest = hashlib.sha256(self.task_id.encode("utf-8", "surrogatepass")).hexdigest()
            object.__setattr__(self, "task_id", DIGEST_PREFIX + digest)

    @property
    def is_delivered(self) -> bool:
        """Whether it is a message's: not a call as a function, nor a lock without a task."""
        return not self.task_id.startswith((DIRECT_PREFIX, STANDALONE_PREFIX))

    @property
    def is_message(self) -> bool:
        """Whether somebody can wait for the result of this task id."""
        return self.is_delivered and not self.task_id.startswith(DIGEST_PREFIX)

    @property
    def step(self) -> Step:
        """Which run of the message this is, however often it was sent back."""
        return self.retries, self.replacements

    @property
    def run(self) -> Delivery:
        """The same, however often it was sent back: what comes to its end once, whichever copy does it."""
        return replace(self, comebacks=0)

    def follows(self, step: Step) -> bool:
        """Whether this is a later run of the message than ``step``: a replacement counts its retries anew."""
        return (self.replacements, self.retries) > (step[1], step[0])


@dataclass(frozen=True, slots=True)
class EndByLease:
    """When a key's time is over by the store's own clock: once its lease is ``age_seconds`` old.

    ``term`` is the leader's as it was known when the lease was granted. A later leader counts the age from when it
    began to lead (``core.expiry``).
    """

    age_seconds: int
    term: int


@dataclass(frozen=True, slots=True)
class Record:
    """What a key is, and whose.

    ``since`` and ``until`` are Unix times in seconds by the writer's wall clock. ``until`` is set on keys that nobody
    renews; ``by_lease`` says the same by the store's clock. ``limit`` is how many may hold the lock as this owner
    understood it, ``broker`` a fingerprint of its message broker. ``successor`` is the run of the message that a
    handover is for. ``attempt`` is random for each try to put or take over a key that others may rewrite: so a try
    without an answer recognises its own work. ``about`` are the arguments that make the key, for people.
    """

    delivery: Delivery
    task: str
    host: str
    pid: int
    since: float
    limit: int = 1
    broker: str | None = None
    until: float | None = None
    kind: KeyKind = KeyKind.HELD
    successor: Step | None = None
    attempt: str | None = None
    by_lease: EndByLease | None = None
    about: str | None = None

    def is_of_task(self, name: str) -> bool:
        """Whether the task of this name wrote it. Long names are cut, here and there alike."""
        return self.task == _cut(name)

    @property
    def asks_if_done(self) -> bool:
        """Whether a write with it asks if its run has come to its end before: that of a run that is about to begin."""
        return self.kind is KeyKind.HELD and self.delivery.call is not None


def encode_record(record: Record) -> bytes:
    """The record as it is stored. Long texts are cut: they are for people."""
    delivery = record.delivery
    counts = f"{delivery.retries},{delivery.replacements},{delivery.comebacks}"
    own = f'"kind":"{record.kind.value}","delivery":[{_quoted(delivery.task_id)},{counts}],"since":{record.since!r}'
    if delivery.call is not None:
        own += f',"call":{_quoted(delivery.call)}'
    if record.about is not None:
        own += f',"about":{_quoted(_cut(record.about))}'
    rarely = {
        "until": record.until,
        "successor": record.successor,
        # Older versions know a key by these two.
        "handed_over": True if record.kind is KeyKind.HANDOVER else None,
        "in_line": True if record.kind is KeyKind.POSITION else None,
        "attempt": record.attempt,
        "by_lease": None if record.by_lease is None else [record.by_lease.age_seconds, record.by_lease.term],
    }
    if any(value is not None for value in rarely.values()):
        own += f",{_members(rarely)}"
    lasting = _same_for_many(record.task, record.host, record.pid, record.limit, record.broker)
    return f"{{{lasting},{own}}}".encode()


@lru_cache(maxsize=REMEMBERED_RECORDS)
def _same_for_many(task: str, host: str, pid: int, limit: int, broker: str | None) -> str:
    """What the records of one task in one process have in common, as members of a JSON object."""
    return _members(
        {"v": RECORD_VERSION, "task": _cut(task), "host": _cut(host), "pid": pid, "limit": limit, "broker": broker}
    )


def _members(fields: dict[str, Any]) -> str:
    return _as_json({name: value for name, value in fields.items() if value is not None})[1:-1]


def _cut(text: str) -> str:
    if 6 * len(text) <= MAX_TEXT_BYTES:
        return text
    while len(json.dumps(text)) > MAX_TEXT_BYTES:
        text = text[: len(text) - max(1, (len(json.dumps(text)) - MAX_TEXT_BYTES) // 6)]
    return text


def decode_record(value: bytes) -> Record | None:
    """The record stored in ``value``; ``None`` when it isn't one that this version understands."""
    return _decoded(value) if len(value) <= MAX_RECORD_BYTES else None


@lru_cache(maxsize=REMEMBERED_RECORDS)
def _decoded(value: bytes) -> Record | None:
    try:
        fields = json.loads(value)
        if not isinstance(fields, dict) or fields.get("v") is not RECORD_VERSION:
            return None
        task_id, *counts = several(fields["delivery"], 4)
        retries, replacements, comebacks = map(count, counts)
        by_lease = optional(fields, "by_lease", pair)
        record = Record(
            Delivery(text(task_id), retries, replacements, comebacks, optional(fields, "call", text)),
            text(fields["task"]),
            text(fields["host"]),
            count(fields["pid"]),
            number(fields["since"]),
            count(fields["limit"]),
            optional(fields, "broker", text),
            optional(fields, "until", number),
            _kind(fields),
            optional(fields, "successor", pair),
            optional(fields, "attempt", text),
            None if by_lease is None else EndByLease(*by_lease),
            optional(fields, "about", text),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None
    return record if record.limit >= 1 else None


def _kind(fields: dict[str, Any]) -> KeyKind:
    if "kind" in fields:
        return KeyKind(fields["kind"])
    # Written before there were kinds.
    if fields.get("in_line", False) is True:
        return KeyKind.POSITION
    if fields.get("handed_over", False) is True:
        return KeyKind.HANDOVER
    return KeyKind.CLAIM if "until" in fields else KeyKind.HELD
