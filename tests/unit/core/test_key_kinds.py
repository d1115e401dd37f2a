"""The table of kinds and transitions: who may do what with a key."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.core import key_kinds
from celery_etcdlock.core.key_kinds import (
    Relation,
    ends_with,
    is_kept_out,
    is_replaceable,
    relation,
    written_by_a_process,
)
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import (
    MAX_RECORD_BYTES,
    STANDALONE_PREFIX,
    Delivery,
    KeyKind,
    Record,
    decode_record,
    encode_record,
)
from tests.key_transitions import TRANSITIONS

KINDS = st.sampled_from(KeyKind)
STEPS = st.tuples(st.integers(0, 3), st.integers(0, 2))
DELIVERIES = st.builds(
    Delivery, st.sampled_from(["a", "b"]), st.integers(0, 3), st.integers(0, 2), st.integers(0, 3), st.none()
)
RECORDS = st.builds(
    Record,
    DELIVERIES,
    st.just("proj.task"),
    st.just("host"),
    st.just(1),
    st.just(0.0),
    kind=KINDS,
    successor=st.none() | STEPS,
)


A = Delivery("a")


def record(kind: KeyKind, delivery: Delivery = A, **fields: object) -> Record:
    return replace(Record(delivery, "proj.task", "host", 1, 0.0, kind=kind), **fields)  # type: ignore[arg-type]


def key(of: Record | None) -> Key:
    return Key("token", 1, 1, of)


@given(RECORDS, DELIVERIES)
def test_a_run_takes_over_only_what_stands_for_it(of: Record, delivery: Delivery) -> None:
    if relation(of, delivery) is not Relation.OURS:
        return
    assert of.delivery.task_id == delivery.task_id
    assert of.kind in (KeyKind.CLAIM, KeyKind.HANDOVER)
    if of.kind is KeyKind.CLAIM:
        assert of.delivery.step == delivery.step
    else:
        assert of.successor in (None, delivery.step)
        assert of.successor is not None or delivery.follows(of.delivery.step), "a copy of the run that left it"


@given(RECORDS, DELIVERIES, st.integers(0, 3))
def test_how_often_a_message_came_back_makes_no_difference(of: Record, delivery: Delivery, comebacks: int) -> None:
    assert relation(of, delivery) is relation(of, replace(delivery, comebacks=comebacks))
    assert ends_with(of, delivery) is ends_with(of, replace(delivery, comebacks=comebacks))


@given(RECORDS, DELIVERIES)
def test_only_keys_of_its_message_end_with_a_run(of: Record, delivery: Delivery) -> None:
    if ends_with(of, delivery):
        assert of.delivery.task_id == delivery.task_id
        assert of.kind not in (KeyKind.HELD, KeyKind.LEAST_HOLD), "a process holds it, or it is nobody's"
        assert None in TRANSITIONS[of.kind]


@given(RECORDS, DELIVERIES)
def test_strangers_are_strangers(of: Record, delivery: Delivery) -> None:
    assert (relation(of, delivery) is Relation.STRANGER) is (of.delivery.task_id != delivery.task_id)


def test_what_cant_be_read_is_somebody_elses() -> None:
    assert relation(None, Delivery("a")) is Relation.STRANGER
    assert not ends_with(None, Delivery("a"))
    assert not is_replaceable(key(None))
    assert written_by_a_process(key(None))


@pytest.mark.parametrize("kind", KeyKind)
def test_what_is_replaced_may_become_a_claim_or_a_position(kind: KeyKind) -> None:
    allowed = TRANSITIONS[kind] & {KeyKind.CLAIM} if kind is not KeyKind.POSITION else {KeyKind.POSITION}
    assert is_replaceable(key(record(kind))) is bool(allowed)


def test_the_table_in_the_docstring_is_the_table() -> None:
    """The kinds of the first column, in their order; each of them has transitions."""
    rows = [line.split("  ")[0] for line in (key_kinds.__doc__ or "").splitlines() if line and line[0] not in " =*"]
    assert [row for row in rows if row in {kind.value for kind in KeyKind}] == [kind.value for kind in KeyKind]
    assert set(TRANSITIONS) == {None, *KeyKind}


def test_a_copy_of_the_run_before_isnt_the_retry() -> None:
    left = record(KeyKind.HANDOVER, successor=(1, 0))
    assert relation(left, Delivery("a", retries=1, comebacks=4)) is Relation.OURS
    assert relation(left, Delivery("a")) is Relation.KIN
    assert relation(left, Delivery("a", replacements=1)) is Relation.LEFT_BEHIND


def test_a_message_waits_with_its_position_and_doesnt_run_with_it() -> None:
    position = record(KeyKind.POSITION)
    assert relation(position, Delivery("a", comebacks=3)) is Relation.OUR_POSITION
    assert relation(position, Delivery("a", retries=1)) is Relation.LEFT_BEHIND
    assert not is_kept_out(Delivery("a"), [key(position)])


@pytest.mark.parametrize("kind", [KeyKind.HELD, KeyKind.CLAIM, KeyKind.HANDOVER, KeyKind.LEAST_HOLD])
def test_no_second_place_for_one_message(kind: KeyKind) -> None:
    other, mine = key(record(kind, Delivery("b"))), key(record(kind))
    assert not is_kept_out(Delivery("a"), [other])
    assert is_kept_out(Delivery("a", retries=1), [other, mine])
    alone = Delivery(f"{STANDALONE_PREFIX}pid 1")
    assert not is_kept_out(alone, [key(record(KeyKind.HELD, alone))]), "two locks of one process without a task"


class TestRecords:
    @given(RECORDS)
    def test_what_is_written_is_read(self, of: Record) -> None:
        assert decode_record(encode_record(of)) == of

    @pytest.mark.parametrize(
        ("fields", "kind"),
        [
            ({}, KeyKind.HELD),
            ({"until": 5.0}, KeyKind.CLAIM),
            ({"until": 5.0, "in_line": True}, KeyKind.POSITION),
            ({"until": 5.0, "handed_over": True}, KeyKind.HANDOVER),
        ],
    )
    def test_records_of_older_versions_are_read_by_their_flags(self, fields: dict[str, object], kind: KeyKind) -> None:
        written = {"v": 1, "delivery": ["a", 0, 0, 0], "task": "t", "host": "h", "pid": 1, "since": 0, "limit": 1}
        read = decode_record(json.dumps(written | fields).encode())
        assert read is not None
        assert read.kind is kind
        if kind is KeyKind.HANDOVER:
            assert relation(read, Delivery("a", retries=1)) is Relation.OURS
            assert relation(read, Delivery("a")) is Relation.KIN

    @pytest.mark.parametrize("kind", ["new", "", 5, None, [], {}])
    def test_a_kind_that_isnt_known_is_somebody_elses(self, kind: object) -> None:
        fields = json.loads(encode_record(record(KeyKind.HELD)))
        assert decode_record(json.dumps(fields | {"kind": kind}).encode()) is None

    @given(st.text(max_size=9000), st.text(max_size=9000))
    def test_an_id_is_never_cut(self, one: str, other: str) -> None:
        """However long: two ids are the same in etcd only if they are, so a retry of either is no stranger."""
        long = record(KeyKind.HELD, Delivery(one), task=other, host=other)
        written = encode_record(long)
        assert len(written) <= MAX_RECORD_BYTES
        read = decode_record(written)
        assert read is not None
        assert read.delivery == Delivery(one)
        assert read.is_of_task(other)
        assert (Delivery(one) == Delivery(other)) is (one == other)

    def test_a_long_id_is_kept_whole_and_a_huge_one_as_a_digest(self) -> None:
        whole, huge = Delivery("x" * 2000), Delivery("x" * 5000)
        assert whole.task_id == "x" * 2000
        assert whole.is_message
        assert huge.task_id.startswith("sha256:")
        assert not huge.is_message, "nobody can look up the result of a digest"
        assert huge != Delivery("x" * 5001)
