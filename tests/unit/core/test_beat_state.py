"""What beats leave for one another: written and read back, and what of it is believed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_etcdlock.core.beat_state import (
    ABSENT_SECONDS,
    EntryState,
    Phase,
    Unreadable,
    WorkState,
    decode_state,
    encode_state,
    later_run,
    not_from_the_future,
)
from celery_etcdlock.core.beat_view import beat_as_json, beat_check_results, beats_of
from celery_etcdlock.core.check_results import Level
from celery_etcdlock.core.lock_table import KeyEntry, LockEntry
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, Record

NOW = 1_800_000_000.0
times = st.floats(0, 1e11, allow_nan=False)
texts = st.text(max_size=200)
entry_states = st.builds(
    EntryState,
    texts,
    texts,
    texts,
    times,
    st.integers(0, 2**53),
    st.sampled_from(Phase),
    st.none() | times,
    st.none() | times,
    st.none() | texts,
    st.integers(0, 2**53),
    st.none() | times,
)
work_states = st.builds(WorkState, texts, st.integers(0, 2**31), times, st.integers(0, 2**53), st.integers(0), texts)
STATE = EntryState("a", "t", "every 1 s", NOW - 10, 3, Phase.PUBLISHED, NOW - 10, NOW + 5, "id", 7)


@settings(deadline=None)
@given(entry_states | work_states)
def test_what_is_written_is_read_back(state: EntryState | WorkState) -> None:
    assert decode_state(encode_state(state)) == state


# A dict with "v" at its top may say that it is of a newer version.
anything = st.recursive(st.none() | st.integers() | st.text(), lambda of: st.dictionaries(st.text(), of))


@settings(deadline=None)
@given(
    st.binary(max_size=300)
    | anything.filter(lambda it: not isinstance(it, dict) or "v" not in it).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_what_anybody_wrote_is_no_state(value: bytes) -> None:
    assert decode_state(value) is None


@pytest.mark.parametrize("field", ["name", "task", "schedule", "last", "count", "phase", "due", "next", "id", "fence"])
@pytest.mark.parametrize("value", [None, [], {}, -1.5, "\x00", True, 1e300])
def test_a_field_of_another_kind_is_no_state(field: str, value: Any) -> None:
    fields = json.loads(encode_state(STATE))
    fields[field] = value
    decoded = decode_state(json.dumps(fields).encode())
    is_text = isinstance(value, str) and field in ("name", "task", "schedule", "id")
    is_time = value == -1.5 and field in ("last", "due", "next")
    assert isinstance(decoded, EntryState) if is_text or is_time else decoded is None


@pytest.mark.parametrize("version", [2, 99])
def test_a_newer_version_is_told_from_nonsense(version: int) -> None:
    assert decode_state(json.dumps({"v": version, "anything": 1}).encode()) is Unreadable.NEWER


def test_the_later_last_run_counts() -> None:
    assert later_run(STATE, None, NOW) == NOW - 10
    assert later_run(STATE, NOW - 20, NOW) == NOW - 10
    assert later_run(STATE, NOW - 5, NOW) is None
    absent = replace(STATE, absent_since=NOW - ABSENT_SECONDS + 1)
    assert later_run(absent, None, NOW) == NOW - 10
    assert later_run(absent, None, NOW + 2) is None


def test_a_clock_that_went_wrong_is_not_believed() -> None:
    assert not_from_the_future(STATE, NOW) is STATE
    near, far = replace(STATE, last_run_at=NOW + 59), replace(STATE, last_run_at=NOW + 61)
    assert not_from_the_future(near, NOW) is near
    assert not_from_the_future(far, NOW).last_run_at == NOW


class TestWhatOperatorsSee:
    RECORD = Record(Delivery("no task, beat"), "celery beat", "here", 12, NOW - 60)

    def place(self, token: str) -> KeyEntry:
        return KeyEntry("beat:app", "beat:app", Key(token, 1, 1, self.RECORD, 5))

    def saved(self, *states: EntryState | WorkState) -> dict[str, dict[str, bytes]]:
        return {"beat:app": {str(number): encode_state(state) for number, state in enumerate(states)}}

    def lock(self, waiters: int) -> list[LockEntry]:
        return [
            LockEntry("beat:app", (self.place("a"),), tuple(self.place(str(number)) for number in range(waiters))),
            LockEntry("tasks.work", (self.place("b"),), ()),
        ]

    def levels(self, saved: dict[str, dict[str, bytes]], locks: list[LockEntry]) -> list[tuple[Level, str]]:
        [view] = beats_of(saved, locks)
        return [(finding.level, finding.text) for finding in beat_check_results(view, NOW)]

    def test_a_beat_at_work(self) -> None:
        gone = replace(STATE, name="gone", absent_since=NOW)
        [view] = beats_of(self.saved(STATE, gone, WorkState("here", 12, NOW - 5, 7, 2)), self.lock(2))
        shown = beat_as_json(view)
        assert (shown["since"], shown["takeovers"], shown["at_work"]["pid"]) == (NOW - 5, 2, 12)
        assert len(shown["standing_by"]) == 2
        [entry] = shown["entries"]
        assert (entry["entry"], entry["last"], entry["next"], entry["count"]) == ("a", NOW - 10, NOW + 5, 3)
        assert self.levels(self.saved(STATE), self.lock(2)) == [
            (Level.OK, "at work on here, pid 12, 2 standing by, 1 entries")
        ]

    def test_what_is_wrong(self) -> None:
        nobody_stands_by = self.levels(self.saved(STATE), self.lock(0))
        assert [level for level, _ in nobody_stands_by] == [Level.WARNING]
        none_at_work = self.levels(self.saved(STATE), [])
        assert none_at_work == [(Level.BROKEN, "none is at work: nothing is scheduled")]
        overdue = self.levels(self.saved(replace(STATE, next_at=NOW - 61)), self.lock(1))
        assert (Level.WARNING, "1 entries are overdue by more than 60 s, such as 'a'") in overdue
        ahead = self.levels(self.saved(replace(STATE, last_run_at=NOW + 100)), self.lock(1))
        assert any("in the future" in text for _, text in ahead)
        stuck = self.levels(self.saved(replace(STATE, phase=Phase.CLAIMED, last_run_at=NOW - 100)), self.lock(1))
        assert any("claimed and not confirmed" in text for _, text in stuck)
        newer = self.levels({"beat:app": {"a": b'{"v":9}'}}, self.lock(1))
        assert newer[0][0] is Level.BROKEN

    def test_without_a_beat_there_is_nothing_to_say(self) -> None:
        assert beats_of({}, self.lock(0)[1:]) == []
