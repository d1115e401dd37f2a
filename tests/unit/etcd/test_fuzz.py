"""The short form of ``make fuzz``: the same inputs each time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.server_says import FAILED, SEEDS, are_whole, mutated, play
from tests.unit.etcd.recorded import ETCD_GREETS, MESSAGE, WATCH_OF_ETCD, Played, odd_reply, plain_reply, watched


def test_the_judge_knows_a_whole_reply() -> None:
    for said in (plain_reply(), odd_reply()):
        assert are_whole(said, [MESSAGE], ended=True)
        assert not are_whole(said[:-1], [MESSAGE], ended=True)
        assert not are_whole(said, [MESSAGE[:-1]], ended=True)
        assert not are_whole(said, [MESSAGE[:-1]], ended=False)
        assert not are_whole(said, [], ended=True)
        assert are_whole(said[:-1], [MESSAGE], ended=False)
    assert not are_whole(FAILED, [MESSAGE], ended=True)
    assert len(watched(Played([ETCD_GREETS, WATCH_OF_ETCD]))) == 5


@pytest.mark.parametrize("seed", range(4))
def test_mutations_of_a_conversation(seed: int) -> None:
    chance = random.Random(seed)
    accepted = sum(play(mutated(chance.choice(SEEDS), chance)) for _ in range(1500))
    assert accepted, "mutations that nothing survives test little"


@settings(max_examples=300, derandomize=True)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8))
def test_bytes_changed_anywhere(seed: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(seed)
    for place, value in changes:
        data[place % len(data)] = value
    play(bytes(data))


@settings(max_examples=200, derandomize=True)
@given(st.binary(max_size=400))
def test_bytes_of_any_kind(data: bytes) -> None:
    play(data)
