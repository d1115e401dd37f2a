"""A watch that breaks says why, and one that the server ends goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from celery_etcdlock.core.lock_table import SnapshotOutdated
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.errors import EtcdError
from celery_etcdlock.etcd.etcd_inspector import EtcdInspector
from celery_etcdlock.etcd.key_layout import Layout

PREFIX = "/app/"
LOCK = Layout(PREFIX).locks + b"sync/1"


def created(revision: int = 5) -> Any:
    return messages.WatchResponse(header={"revision": revision}, created=True)


def deleted(revision: int, key: bytes = LOCK) -> Any:
    event = messages.Event(type=messages.Event.DELETE, kv={"key": key, "mod_revision": revision})
    return messages.WatchResponse(header={"revision": revision}, events=[event])


class Watched:
    """A client whose watches answer, one after the other, with these; each ends after its last answer."""

    def __init__(self, *watches: list[Any]) -> None:
        self._watches = iter(watches)
        self.starts: list[int] = []

    @contextmanager
    def stream(self, path: str, request: bytes, timeout_seconds: float) -> Iterator[Watched]:
        assert path == messages.WATCH
        self.starts.append(messages.WatchRequest.FromString(request).create_request.start_revision)
        answers = next(self._watches)
        self._answers, self.ended = iter(answers), False
        yield self

    def receive(self, timeout_seconds: float) -> bytes | None:
        answer = next(self._answers, None)
        if answer is None:
            self.ended = True
            return None
        return bytes(answer.SerializeToString())


def deletions(client: Watched) -> Iterator[set[str]]:
    inspector = EtcdInspector(client, PREFIX, 1.0)  # type: ignore[arg-type]
    return (names for names in inspector.deletions(4) if names)


def test_a_watch_that_the_server_ends_goes_on_after_what_came() -> None:
    client = Watched([created(), deleted(7)], [created(7), deleted(9)], [])
    found = deletions(client)
    assert next(found) == {"sync"}
    assert next(found) == {"sync"}
    assert client.starts == [5, 8]


def test_a_watch_that_is_cancelled_says_why() -> None:
    cancelled = messages.WatchResponse(canceled=True, cancel_reason="permission denied")
    with pytest.raises(EtcdError, match="the watch was cancelled: permission denied"):
        next(deletions(Watched([cancelled])))


def test_a_watch_of_what_was_compacted_needs_another_snapshot() -> None:
    compacted = messages.WatchResponse(canceled=True, compact_revision=8)
    with pytest.raises(SnapshotOutdated, match="revision 5 was compacted"):
        next(deletions(Watched([compacted])))


def test_a_server_that_ends_each_watch_at_once_is_not_asked_for_ever() -> None:
    with pytest.raises(EtcdError, match="before it began"):
        next(deletions(Watched([], [], [])))
