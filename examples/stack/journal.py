"""Counts in Redis who is inside a lock: evidence that doesn't come from the locks themselves."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from redis import Redis


@dataclass(frozen=True)
class Seen:
    """``at_once`` is the largest number of bodies that were inside at one time; ``hosts`` is where they ran."""

    at_once: int
    entered: int
    hosts: list[str]
    tokens: list[int]


class Journal:
    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url, decode_responses=True)

    @contextmanager
    def inside(self, key: str, token: int) -> Iterator[None]:
        now_inside = self._redis.incr(f"{key}|inside")
        self._redis.rpush(f"{key}|entered", f"{now_inside} {socket.gethostname()} {token}")
        try:
            yield
        finally:
            self._redis.decr(f"{key}|inside")

    def seen(self, key: str) -> Seen:
        entries = [entry.split() for entry in self._redis.lrange(f"{key}|entered", 0, -1)]
        return Seen(
            at_once=max((int(number) for number, _, _ in entries), default=0),
            entered=len(entries),
            hosts=sorted({host for _, host, _ in entries}),
            tokens=[int(token) for _, _, token in entries],
        )

    def forget(self, *keys: str) -> None:
        for key in keys:
            self._redis.delete(f"{key}|inside", f"{key}|entered")
