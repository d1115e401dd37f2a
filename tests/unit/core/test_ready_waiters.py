"""Whose turn it is, among messages that wait for one lock."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.core.ownership import Key, effective_limit, preceding
from celery_etcdlock.core.ready_waiters import Waiting, ready_waiters
from celery_etcdlock.core.record import Delivery, KeyKind, Record


def key(token: str, revision: int, limit: int = 1) -> Key:
    return Key(token, revision, revision, Record(Delivery(f"id-{token}"), "t", "h", 1, 0.0, limit))


def test_places_in_line_go_in_order() -> None:
    waiting = [Waiting(position_token="2"), Waiting(position_token="3")]
    assert ready_waiters(waiting, [key("1", 1), key("2", 2), key("3", 3)]) == [False, False]
    assert ready_waiters(waiting, [key("2", 2), key("3", 3)]) == [True, False]


def test_as_many_go_as_the_limit_says_and_the_smallest_counts() -> None:
    waiting = [Waiting(3, "2"), Waiting(3, "3"), Waiting(3, "4")]
    assert ready_waiters(waiting, [key(str(n), n, 3) for n in range(1, 5)]) == [True, True, False]
    assert ready_waiters(waiting, [key("1", 1, 2), *(key(str(n), n, 3) for n in range(2, 5))]) == [True, False, False]


def test_without_a_place_as_many_go_as_there_is_room_for() -> None:
    waiting = [Waiting(), Waiting(), Waiting()]
    assert ready_waiters(waiting, []) == [True, False, False]
    assert ready_waiters(waiting, [key("1", 1)]) == [False, False, False]


def test_a_place_that_is_gone_is_none() -> None:
    assert ready_waiters([Waiting(position_token="gone")], [key("1", 1)]) == [False]
    assert ready_waiters([Waiting(position_token="gone")], []) == [True]


def test_joiners_go_when_whom_they_wait_for_has_let_go() -> None:
    waiting = [Waiting(joins="id-1"), Waiting(joins="id-9")]
    assert ready_waiters(waiting, [key("1", 1)]) == [False, True]


@given(
    limits=st.lists(st.integers(1, 4) | st.none(), max_size=8),
    order=st.randoms(use_true_random=False),
    limit=st.integers(1, 4),
)
def test_a_place_goes_when_fewer_precede_it_than_any_of_them_and_itself_allow(
    limits: list[int | None], order: random.Random, limit: int
) -> None:
    keys = [key(str(n), n, each) if each else Key(str(n), n, n, None) for n, each in enumerate(limits)]
    order.shuffle(keys)
    turns = ready_waiters([Waiting(limit, each.token) for each in keys], keys)
    for each, turn in zip(keys, turns, strict=True):
        before = preceding(keys, each.create_revision)
        assert turn == (len(before) < effective_limit(limit, before))


def test_a_key_that_stands_for_a_message_is_not_in_its_way() -> None:
    """What a run has left for its retry, say, which came back before that."""
    left = replace(key("1", 1).record or Record(Delivery(""), "", "", 1, 0.0), kind=KeyKind.HANDOVER, successor=(1, 0))
    handover = Key("1", 1, 1, left)
    retry, copy = Delivery("id-1", retries=1), Delivery("id-1")
    assert ready_waiters([Waiting(delivery=retry)], [handover]) == [True]
    assert ready_waiters([Waiting(delivery=copy), Waiting(delivery=Delivery("other"))], [handover]) == [False, False]
