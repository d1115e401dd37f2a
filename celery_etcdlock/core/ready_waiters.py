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
    """One message. ``position_token``: of its queue position; ``joins``: the task whose result it waits for.

    A message whose ``delivery`` already has a key under the name goes on, and takes that key over.
    """

    limit: int = 1
    position_token: str | None = None
    joins: str | None = None
    delivery: Delivery | None = None


def ready_waiters(waiting: Sequence[Waiting], keys: Sequence[Key]) -> list[bool]:
    """For each message, in order of arrival, whether it may go on now. ``keys`` are all under the lock's name."""
    holders = {key.record.delivery.task_id for key in keys if key.record is not None}
    precede = _precede(keys)
    free: int | None = None
    ready: list[bool] = []
    for message in waiting:
        if message.joins is not None:
            ready.append(message.joins not in holders)
        elif message.delivery is not None and find(keys, message.delivery, Relation.OURS) is not None:
            ready.append(True)
        elif message.position_token in precede:
            number, limit = precede[message.position_token]
            ready.append(number < min(message.limit, limit))
        else:  # without a queue position, or with one that is gone
            if free is None:
                free = effective_limit(message.limit, keys) - len(keys)
            ready.append(free > 0)
            free -= 1
    return ready


def _precede(keys: Sequence[Key]) -> dict[str | None, tuple[int, float]]:
    """By token: how many keys precede it, and the smallest limit that they recorded. One pass: a queue may be long."""
    found: dict[str | None, tuple[int, float]] = {}
    limit = math.inf
    for number, key in enumerate(sorted(keys, key=lambda key: key.create_revision)):
        found[key.token] = number, limit
        if key.record is not None:
            limit = min(limit, key.record.limit)
    return found
