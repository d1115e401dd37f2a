"""Whose turn it is, among messages that wait for one lock: what the gate decides when something changed.

Pure. A message waits in one of three ways: with a place in line (it goes when few enough precede it), for the result of
the task that holds the lock (it goes when that one has let go), or just for the lock (as many go as there is room for).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from celery_etcdlock.core.ownership import Key, effective_limit, preceding

__all__ = ["Waiting", "whose_turn"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One message. ``place_token``: of its place in line; ``joins``: the task whose result it waits for."""

    limit: int = 1
    place_token: str | None = None
    joins: str | None = None


def whose_turn(waiting: Sequence[Waiting], keys: Sequence[Key]) -> list[bool]:
    """For each message, in order of arrival, whether it may go now. ``keys`` are all under the lock's name."""
    holders = {key.record.delivery.task_id for key in keys if key.record is not None}
    free: int | None = None
    turns: list[bool] = []
    for message in waiting:
        if message.joins is not None:
            turns.append(message.joins not in holders)
            continue
        mine = next((key for key in keys if key.token == message.place_token), None)
        if mine is not None:
            before = preceding(keys, mine.create_revision)
            turns.append(len(before) < effective_limit(message.limit, before))
            continue
        # Without a place, or with one that is gone.
        if free is None:
            free = effective_limit(message.limit, keys) - len(keys)
        turns.append(free > 0)
        free -= 1
    return turns
