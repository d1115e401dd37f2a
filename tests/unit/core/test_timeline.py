"""Who held which lock when."""

from __future__ import annotations

from celery_etcdlock.core.lock_table import KeyEntry, Kind, Transition
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.timeline import Timeline


def entry(name: str, token: str = "t", since: float = 100.0) -> KeyEntry:
    return KeyEntry(name, name, Key(token, 1, 1, Record(Delivery(f"id-{name}"), "p.t", "host", 7, since), 99))


def bars(timeline: Timeline, now: float) -> list[tuple[str, float, float | None]]:
    return [(bar["lock"], bar["began"], bar["ended"]) for bar in timeline.bars(now)]


def test_a_hold_goes_on_until_its_release() -> None:
    timeline = Timeline(60)
    timeline.apply(Transition(Kind.ACQUIRED, entry("a")), 110.0)
    assert bars(timeline, 120.0) == [("a", 110.0, None)]
    timeline.apply(Transition(Kind.RELEASED, entry("a")), 130.0)
    assert bars(timeline, 140.0) == [("a", 110.0, 130.0)]


def test_what_ended_long_ago_is_forgotten_and_what_goes_on_is_not() -> None:
    timeline = Timeline(60)
    for name in ("a", "b"):
        timeline.apply(Transition(Kind.ACQUIRED, entry(name)), 110.0)
    timeline.apply(Transition(Kind.RELEASED, entry("a")), 120.0)
    assert bars(timeline, 181.0) == [("b", 110.0, None)]


def test_waiting_is_no_hold() -> None:
    timeline = Timeline()
    timeline.apply(Transition(Kind.WAITING, entry("a")), 110.0)
    timeline.apply(Transition(Kind.GAVE_UP, entry("a")), 120.0)
    assert bars(timeline, 130.0) == []


def test_after_missed_changes_it_starts_from_who_owns_now() -> None:
    timeline = Timeline()
    timeline.restart([entry("a", since=50.0), entry("b", since=999.0)], 110.0)
    assert bars(timeline, 110.0) == [("a", 50.0, None), ("b", 110.0, None)]
    timeline.restart([entry("b", since=999.0)], 120.0)
    assert bars(timeline, 130.0) == [("a", 50.0, 120.0), ("b", 110.0, None)]
