"""Which of the messages that the gate has parked for one lock may go on, once something changed.

Pure. A message waits in one of three ways: with a queue position (it goes on when few enough precede it), for the
result of the task that holds the lock (it goes on when that task has released it), or just for the lock (as many go on
as the limit leaves free).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from celery_etcdlock.core.key_kinds import Relation, find
from celery_etcdlock.core.ownership import Key, effective_limit
from celery_etcdlock.core.record import Delivery


@dataclass(frozen=True, slots=True)
class Waiting:
    """One message. ``place_token``: of its queue position; ``joins``: the task whose result it waits for.

    A message whose ``delivery`` already has a key under the name goes on, and takes that key over.
    """

    limit: int = 1
    place_token: str | None = None
    joins: str | None = None
    delivery: Delivery | None = None


def ready_waiters(waiting: Sequence[Waiting], keys: Sequence[Key]) -> list[bool]:
    """For each message, in order of arrival, whether it may go on now. ``keys`` are all under the lock's name."""
    holders = {key.record.delivery.task_id for key in keys if key.record is not None}
    places = _places(keys)
    free: int | None = None
    turns: list[bool] = []
    for message in waiting:
        if message.joins is not None:
            turns.append(message.joins not in holders)
            continue
        if message.delivery is not None and find(keys, message.delivery, Relation.OURS) is not None:
            turns.append(True)
            continue
        place = places.get(message.place_token) if message.place_token is not None else None
        if place is not None:
            turns.append(place.rank < min(message.limit, place.limit))
            continue
        # Without a queue position, or with one that is gone.
        if free is None:
            free = effective_limit(message.limit, keys) - len(keys)
        turns.append(free > 0)
        free -= 1
    return turns


@dataclass(frozen=True, slots=True)
class _Place:
    """How many keys precede one, and the smallest limit that they recorded."""

    rank: int
    limit: float


def _places(keys: Sequence[Key]) -> dict[str, _Place]:
    """What ``preceding`` and ``effective_limit`` say of each token, in one pass: a queue may be long."""
    places: dict[str, _Place] = {}
    limit = math.inf
    for rank, key in enumerate(sorted(keys, key=lambda key: key.create_revision)):
        places[key.token] = _Place(rank, limit)
        if key.record is not None:
            limit = min(limit, key.record.limit)
    return places
