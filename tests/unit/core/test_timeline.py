"""Who held which lock when."""

from __future__ import annotations

from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.survey import Happening, Kind, Place
from celery_etcdlock.core.timeline import Timeline


def place(name: str, token: str = "t", since: float = 100.0) -> Place:
    return Place(name, name, Key(token, 1, 1, Record(Delivery(f"id-{name}"), "p.t", "host", 7, since)), 99)


def bars(timeline: Timeline, now: float) -> list[tuple[str, float, float | None]]:
    return [(bar["lock"], bar["began"], bar["ended"]) for bar in timeline.bars(now)]


def test_a_hold_goes_on_until_its_release() -> None:
    timeline = Timeline(60)
    timeline.apply(Happening(Kind.ACQUIRED, place("a")), 110.0)
    assert bars(timeline, 120.0) == [("a", 110.0, None)]
    timeline.apply(Happening(Kind.RELEASED, place("a")), 130.0)
    assert bars(timeline, 140.0) == [("a", 110.0, 130.0)]


def test_what_ended_long_ago_is_forgotten_and_what_goes_on_is_not() -> None:
    timeline = Timeline(60)
    for name in ("a", "b"):
        timeline.apply(Happening(Kind.ACQUIRED, place(name)), 110.0)
    timeline.apply(Happening(Kind.RELEASED, place("a")), 120.0)
    assert bars(timeline, 181.0) == [("b", 110.0, None)]


def test_waiting_is_no_hold() -> None:
    timeline = Timeline()
    timeline.apply(Happening(Kind.WAITING, place("a")), 110.0)
    timeline.apply(Happening(Kind.GAVE_UP, place("a")), 120.0)
    assert bars(timeline, 130.0) == []


def test_after_missed_changes_it_starts_from_who_owns_now() -> None:
    timeline = Timeline()
    timeline.restart([place("a", since=50.0), place("b", since=999.0)], 110.0)
    assert bars(timeline, 110.0) == [("a", 50.0, None), ("b", 110.0, None)]
    timeline.restart([place("b", since=999.0)], 120.0)
    assert bars(timeline, 130.0) == [("a", 50.0, 120.0), ("b", 110.0, None)]
