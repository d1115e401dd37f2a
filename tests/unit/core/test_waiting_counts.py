"""Messages that wait without a queue position: a worker's note of them, and what readers make of all notes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.core.lock_table import KeyEntry, LockTable, contended_first, number_held
from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.waiting_counts import (
    JOINING,
    MOST_NAMES,
    NONE,
    RETRYING,
    WaitingCount,
    WaitingCounts,
    add_up,
    count,
    read_note,
    write_note,
)

MESSAGES = st.lists(st.tuples(st.text(min_size=1).map(lambda text: text * 60), st.sampled_from([RETRYING, JOINING])))


@given(st.lists(MESSAGES, max_size=4))
def test_no_message_is_lost_between_the_workers_and_a_reader(workers: list[list[tuple[str, WaitingCount]]]) -> None:
    read = add_up([read_note(write_note(count(messages))) for messages in workers])
    everything = [message for messages in workers for message in messages]
    assert read.total == sum((how for _, how in everything), NONE)
    for name, _ in everything:
        assert read.of[escape_name(name)] == sum((how for other, how in everything if other == name), NONE)


def test_a_note_is_bounded_and_keeps_the_most_waited_for() -> None:
    messages = [(f"name-{number:05}" + "x" * 5000, RETRYING) for number in range(5000)]
    counts = count([*messages, ("zzz", JOINING), ("zzz", JOINING)])
    assert (len(counts.of), counts.others.total) == (MOST_NAMES, 5002 - MOST_NAMES - 1)
    assert counts.of["zzz"] == WaitingCount(0, 2)
    note = write_note(counts)
    assert len(note) < 30_000
    assert read_note(note) == counts


def test_where_nothing_waits_there_is_no_note() -> None:
    assert write_note(count([])) == ""


#: What anybody may have written there.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["v", "of", "others", "a"]), inner),
)
PAIRS = st.lists(st.integers() | st.booleans() | st.none(), max_size=3)
LIKE_OURS = st.fixed_dictionaries({"v": st.just(1), "of": st.dictionaries(st.text(), PAIRS | JSON), "others": PAIRS})


@given(st.text() | JSON.map(json.dumps) | LIKE_OURS.map(json.dumps))
def test_what_is_no_note_of_ours_counts_as_little(text: str) -> None:
    counts = read_note(text)
    assert all(min(one.retrying, one.joining) >= 0 for one in (*counts.of.values(), counts.others))
    LockTable([], counts).locks()


@pytest.mark.parametrize("text", ['{"v": 2, "of": {"a": [1, 0]}, "others": [0, 0]}', "[" * 100_000, ""])
def test_what_a_newer_version_writes_is_passed_over(text: str) -> None:
    assert read_note(text) == WaitingCounts()


def entry(name: str, revision: int) -> KeyEntry:
    record = Record(Delivery(f"id-{revision}"), "p.t", "host", 7, float(revision))
    return KeyEntry(name, escape_name(name), Key(str(revision), revision, revision, record, 99))


class TestInATable:
    LONG = "é" * 500

    def table(self) -> LockTable:
        counts = {"a": RETRYING, escape_name(self.LONG): WaitingCount(4, 5), "free/": JOINING}
        return LockTable(
            [entry("a", 1), entry("a", 2), entry(self.LONG, 3), entry("z", 4)],
            WaitingCounts({escape_name(name) if "~" not in name else name: one for name, one in counts.items()}),
        )

    def test_they_stand_beside_the_queue(self) -> None:
        (lock,) = self.table().named("a")
        assert (len(lock.owners), len(lock.waiters), lock.others, lock.waiting) == (1, 1, RETRYING, 2)
        (long,) = self.table().named(self.LONG)
        assert (long.name, long.others.total) == (self.LONG, 9)

    def test_a_free_lock_that_is_waited_for_is_listed_and_not_held(self) -> None:
        table = self.table()
        (free,) = table.named("free/")
        assert (free.name, free.owners, free.waiters, free.others) == ("free/", (), (), JOINING)
        assert table.locks("free*") == [free]
        assert (len(table.locks()), number_held(table.locks())) == (4, 3)
        assert table.of_task("id-1") == table.named("a")
        table.counts = WaitingCounts()
        assert table.named("free/") == []

    def test_the_most_waited_for_come_first_in_whichever_way(self) -> None:
        assert [lock.name for lock in contended_first(self.table().locks())] == [self.LONG, "a", "free/", "z"]
