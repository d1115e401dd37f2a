"""All locks under a prefix, grouped, filtered, and followed change by change."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.core.lock_table import Change, KeyEntry, Kind, LockTable, Transition, described
from celery_etcdlock.core.name_escaping import escape_name, unescape_name
from celery_etcdlock.core.ownership import Key, owns
from celery_etcdlock.core.record import Delivery, Record


def entry(
    name: str, token: str, revision: int, *, limit: int = 1, mod: int | None = None, task: str = "p.t"
) -> KeyEntry:
    record = Record(Delivery(f"id-{token}"), task, "host", 7, 1.0, limit)
    return KeyEntry(name, escape_name(name), Key(token, revision, mod or revision, record, 99))


A1, A2, B1 = entry("a", "1", 10), entry("a", "2", 11), entry("b:x", "3", 5, task="other.task")


class TestGrouping:
    def test_owners_come_first_and_the_rest_waits_in_order(self) -> None:
        (lock,) = LockTable([entry("a", "3", 30), A2, A1]).locks()
        assert [owner.key.token for owner in lock.owners] == ["1"]
        assert [waiter.key.token for waiter in lock.waiters] == ["2", "3"]

    def test_the_smallest_limit_counts(self) -> None:
        entries = [entry("a", str(n), n, limit=3 if n != 2 else 2) for n in range(1, 5)]
        (lock,) = LockTable(entries).locks()
        assert len(lock.owners) == 2

    def test_a_record_that_can_not_be_read_still_holds(self) -> None:
        unreadable = KeyEntry("a", "a", Key("t", 1, 1, None))
        (lock,) = LockTable([unreadable]).locks()
        assert lock.owners == (unreadable,)
        assert described(unreadable)["readable"] is False

    def test_places_whose_time_is_over_are_nobodys(self) -> None:
        record = replace(A1.key.record, until=50.0) if A1.key.record is not None else None
        table = LockTable([replace(A1, key=replace(A1.key, record=record)), A2, B1])
        table.forget_those_over(40.0)
        assert [owner.key.token for owner in table.named("a")[0].owners] == ["1"]
        table.forget_those_over(60.0)
        assert [owner.key.token for owner in table.named("a")[0].owners] == ["2"]
        assert len(table.locks()) == 2


@given(st.lists(st.integers(1, 3), min_size=1, max_size=6))
def test_the_view_shows_as_owners_those_whom_the_protocol_lets_own(limits: list[int]) -> None:
    entries = [entry("a", str(n), n, limit=limit) for n, limit in enumerate(limits, 1)]
    keys = [each.key for each in entries]
    (lock,) = LockTable(entries).locks()
    own = [key.token for key, limit in zip(keys, limits, strict=True) if owns(keys, key.token, limit)]
    assert [owner.key.token for owner in lock.owners] == own


class TestFinding:
    def test_by_pattern_of_lock_or_task(self) -> None:
        table = LockTable([A1, B1])
        for pattern, names in (("a", ["a"]), ("b", ["b:x"]), ("b*", ["b:x"]), ("other.*", ["b:x"]), ("no*", [])):
            assert [lock.name for lock in table.locks(pattern)] == names, pattern

    def test_by_name_or_task_id(self) -> None:
        table = LockTable([A1, A2, B1])
        assert [lock.name for lock in table.named("a")] == ["a"]
        assert [lock.name for lock in table.of_task("id-2")] == ["a"]
        assert table.named("id-9") + table.of_task("id-9") == []


class TestChanges:
    def test_a_life(self) -> None:
        table = LockTable()
        promoted = entry("a", "2", 11, mod=13)
        story = [
            (Change(A1, False), Kind.ACQUIRED),
            (Change(A2, False), Kind.WAITING),
            (Change(A1, True), Kind.RELEASED),
            (Change(promoted, False), Kind.ACQUIRED),
            (Change(promoted, True), Kind.RELEASED),
        ]
        for change, kind in story:
            assert table.apply(change) == Transition(kind, change.entry)
        assert table.locks() == []

    def test_who_leaves_the_line_gave_up(self) -> None:
        table = LockTable([A1, A2])
        assert table.apply(Change(A2, True)) == Transition(Kind.GAVE_UP, A2)

    def test_a_deletion_of_what_was_never_seen_harms_nothing(self) -> None:
        assert LockTable().apply(Change(A1, True)) == Transition(Kind.GAVE_UP, A1)


def test_names_come_back_from_their_segments() -> None:
    for name in ("plain", "with/slash", "ümlaut ~ tilde", "a%2Fb"):
        assert unescape_name(escape_name(name)) == (name if "~" not in escape_name(name) else escape_name(name))
    cut = escape_name("x" * 500)
    assert unescape_name(cut) == cut
