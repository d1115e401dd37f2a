"""What a worker counts as waiting without a queue position, and the note that it leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given

from celery_etcdlock.core.waiting_counts import JOINING, RETRYING, WaitingCount, read_note
from celery_etcdlock.core.worker_notes import NoteKind
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.tasks.message.headers import (
    COPY_HEADER,
    DUPLICATE_HEADER,
    JOIN_HEADER,
    POSITION_HEADER,
    WAITS_FOR_HEADER,
)
from celery_etcdlock.worker import count_waiting
from celery_etcdlock.worker.count_waiting import WaitingMessages, how_it_waits
from tests.unit.tasks.any_headers import HEADERS
from tests.waiting import wait_for


@pytest.mark.parametrize(
    ("headers", "how"),
    [
        ({}, RETRYING),
        ({JOIN_HEADER: ["join", "a", "holder", "id"]}, JOINING),
        ({DUPLICATE_HEADER: ["join", "a", "holder", "id"]}, JOINING),
        ({DUPLICATE_HEADER: ["raise", "a", "holder", "id"]}, RETRYING),
        # In the queue, where it is seen by its key.
        ({POSITION_HEADER: ["a", "token", 5]}, None),
        # It waits for the end of its own task.
        ({COPY_HEADER: True}, None),
    ],
)
def test_how_a_message_waits_is_read_from_its_headers(headers: dict[str, Any], how: WaitingCount | None) -> None:
    assert how_it_waits({WAITS_FOR_HEADER: "a", **headers}) == how


@given(HEADERS)
def test_no_headers_stop_the_worker(headers: dict[str, Any]) -> None:
    how_it_waits(headers)


class Message:
    """As much of a request as counts."""

    time_start: float | None = None
    acknowledged = False


class Notes:
    """As much of an inspector as is used."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}
        self.fails = False
        self.opened = self.closed = 0
        self.refused = threading.Event()

    def write_note(self, kind: NoteKind, worker: str, text: str, seconds: int) -> None:
        assert (kind, seconds) == (NoteKind.WAITING, count_waiting.STANDS_FOR_SECONDS)
        self._check()
        self.notes[worker] = text

    def delete_note(self, kind: NoteKind, worker: str) -> None:
        self._check()
        self.notes.pop(worker, None)

    def _check(self) -> None:
        if self.fails:
            self.refused.set()
            raise LockUnavailable("etcd is away")

    def close(self) -> None:
        self.closed += 1

    def told(self) -> WaitingCount:
        return read_note(self.notes.get("w1", "")).of.get("a", WaitingCount())


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def waiting(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> Iterator[WaitingMessages]:
    monkeypatch.setattr(count_waiting, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(count_waiting, "EVERY_SECONDS", 0.01)

    def open_inspector() -> Any:
        notes.opened += 1
        return notes

    messages = WaitingMessages(open_inspector, "w1")
    yield messages
    messages.close()


def test_a_message_is_counted_until_it_starts_ends_or_is_gone(waiting: WaitingMessages, notes: Notes) -> None:
    messages = [Message() for _ in range(5)]
    for number in range(5):
        waiting.add(messages[number], "a", RETRYING)
    joins = Message()
    waiting.add(joins, "a", JOINING)
    wait_for(lambda: notes.told() == WaitingCount(5, 1), "all are told")
    messages.pop()
    messages[0].time_start = 1.0
    joins.acknowledged = True
    wait_for(lambda: notes.told() == WaitingCount(3, 0), "three are left")
    waiting.clear()
    wait_for(lambda: not notes.notes, "the note is gone")


def test_the_end_of_the_worker_takes_the_note_along(waiting: WaitingMessages, notes: Notes) -> None:
    message = Message()
    waiting.add(message, "a", RETRYING)
    wait_for(lambda: notes.told().retrying == 1, "it is told")
    waiting.close()
    assert (notes.notes, notes.closed) == ({}, 1)
    waiting.add(message, "a", RETRYING)
    assert waiting.counts().total.total == 0


def test_an_etcd_that_is_away_is_told_later(waiting: WaitingMessages, notes: Notes) -> None:
    notes.fails = True
    message = Message()
    waiting.add(message, "a", RETRYING)
    assert notes.refused.wait(10)
    notes.fails = False
    wait_for(lambda: notes.told().retrying == 1, "it is told")
    notes.fails = True
    notes.refused.clear()
    waiting.clear()
    assert notes.refused.wait(10)
    assert notes.notes
    notes.fails = False
    wait_for(lambda: not notes.notes, "the note is gone")


def test_what_waits_for_a_moment_costs_no_call(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count_waiting, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(count_waiting, "FIRST_SECONDS", 0.1)
    monkeypatch.setattr(count_waiting, "EVERY_SECONDS", 0.01)
    waiting = WaitingMessages(lambda: pytest.fail("nothing is to be told"), "w1")
    waiting.add(Message(), "a", RETRYING)  # gone at once
    threads = [thread for thread in threading.enumerate() if thread.name == "celery-etcdlock-count"]
    for thread in threads:
        thread.join(10)
    # The next one starts it anew.
    waiting.add(Message(), "a", RETRYING)
    assert any(thread.name == "celery-etcdlock-count" for thread in threading.enumerate())
    waiting.close()


def test_no_more_than_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count_waiting, "MOST_MESSAGES", 3)
    waiting = WaitingMessages(lambda: pytest.fail("not so soon"), "w1")
    messages = [Message() for _ in range(10)]
    for message in messages:
        waiting.add(message, "a", RETRYING)
    assert waiting.counts().total.retrying == 3
    waiting.clear()
    waiting.close()
