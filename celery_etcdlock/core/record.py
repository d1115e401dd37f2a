"""What is stored under a lock: who holds it, as strict JSON with a version.

The record explains a lock to people and tells a delivery its kin (a copy, a successor); it never decides
who owns the lock: revisions do (``ownership``). Anyone can write under our prefix, so what is read is
trusted for nothing: a record that doesn't parse, is too large or has a newer version is ``None``, and a
key with such a record counts as *held by someone else*, for the cautious answer is the safe one.

Task arguments are never stored: they may be secret, and a lock needs only their digest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import Any

__all__ = [
    "DIRECT_PREFIX",
    "RECORD_VERSION",
    "STANDALONE_PREFIX",
    "Delivery",
    "Kinship",
    "Record",
    "decode_record",
    "encode_record",
]

RECORD_VERSION = 1
MAX_RECORD_BYTES = 8192
MAX_TEXT_LENGTH = 512
#: So many records are remembered as decoded: who waits in a long line reads the same ones at each turn.
REMEMBERED_RECORDS = 2048

#: What stands for a task id where a task was called as a function, and where there is no task at all.
DIRECT_PREFIX = "direct-"
STANDALONE_PREFIX = "no task, "


class Kinship(Enum):
    """How a delivery that asks for a lock is related to the one that holds it."""

    STRANGER = "stranger"
    COPY = "copy"
    SUCCESSOR = "successor"


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

    @property
    def is_message(self) -> bool:
        """Whether somebody can wait for the result of this task id."""
        return not self.task_id.startswith((DIRECT_PREFIX, STANDALONE_PREFIX))

    @property
    def step(self) -> Delivery:
        """The same, however often it was sent back: what comes to its end once, whichever copy does it."""
        return replace(self, comebacks=0)

    def kinship(self, holder: Delivery | None) -> Kinship:
        """What this delivery is to ``holder``: its copy, its successor, or a stranger."""
        if holder is None or holder.task_id != self.task_id:
            return Kinship.STRANGER
        return Kinship.COPY if holder == self else Kinship.SUCCESSOR


@dataclass(frozen=True, slots=True)
class Record:
    """Who holds a lock, or waits for it.

    ``since`` and ``until`` are Unix times in seconds by the writer's wall clock; ``until`` is set on keys that
    stand without renewal. ``limit`` is how many may hold the lock as this owner understood it; ``broker`` a
    fingerprint of the owner's message broker; ``handed_over`` marks a key that its owner left for a successor, and
    ``in_line`` a place in line whose message hasn't come to its turn.
    ``attempt`` is random for each try to take over a key that is there already, so that a try without an answer knows
    its own work again.
    """

    delivery: Delivery
    task: str
    host: str
    pid: int
    since: float
    limit: int = 1
    broker: str | None = None
    until: float | None = None
    handed_over: bool = False
    in_line: bool = False
    attempt: str | None = None


def encode_record(record: Record) -> bytes:
    """The record as it is stored. Long texts are cut: they are for people."""
    delivery = record.delivery
    fields: dict[str, Any] = {
        "v": RECORD_VERSION,
        "delivery": [
            delivery.task_id[:MAX_TEXT_LENGTH],
            delivery.retries,
            delivery.replacements,
            delivery.comebacks,
        ],
        "task": record.task[:MAX_TEXT_LENGTH],
        "host": record.host[:MAX_TEXT_LENGTH],
        "pid": record.pid,
        "since": record.since,
        "limit": record.limit,
    }
    if record.broker is not None:
        fields["broker"] = record.broker
    if record.until is not None:
        fields["until"] = record.until
    if record.handed_over:
        fields["handed_over"] = True
    if record.in_line:
        fields["in_line"] = True
    if record.attempt is not None:
        fields["attempt"] = record.attempt
    return json.dumps(fields, separators=(",", ":")).encode()


def decode_record(value: bytes) -> Record | None:
    """The record stored in ``value``; ``None`` when it isn't one that this version understands."""
    return _decoded(value) if len(value) <= MAX_RECORD_BYTES else None


@lru_cache(maxsize=REMEMBERED_RECORDS)
def _decoded(value: bytes) -> Record | None:
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.get("v") is not RECORD_VERSION:
        return None
    try:
        record = Record(
            _delivery(fields["delivery"]),
            _text(fields["task"]),
            _text(fields["host"]),
            _count(fields["pid"]),
            _time(fields["since"]),
            _count(fields["limit"]),
            _text(fields["broker"]) if "broker" in fields else None,
            _time(fields["until"]) if "until" in fields else None,
            fields.get("handed_over", False) is True,
            fields.get("in_line", False) is True,
            _text(fields["attempt"]) if "attempt" in fields else None,
        )
    except (KeyError, ValueError, OverflowError):
        return None
    return record if record.limit >= 1 else None


def _delivery(value: object) -> Delivery:
    if not (isinstance(value, list) and len(value) == 4):
        raise ValueError("not a delivery")
    return Delivery(_text(value[0]), *(_count(number) for number in value[1:]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a count")
    return value


def _time(value: object) -> float:
    # The comparison refuses NaN too.
    if type(value) not in (int, float) or not -1e15 < float(value) < 1e15:  # type: ignore[arg-type]
        raise ValueError("not a time")
    return float(value)  # type: ignore[arg-type]
