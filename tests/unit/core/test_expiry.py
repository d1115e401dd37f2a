"""When a key may count as over, whatever wall clocks say, and what machines do about one that seems over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.core.expiry import LONGEST_SKEW_SECONDS, SKEW_SECONDS, Expiry, seems_expired
from celery_etcdlock.core.operations import (
    AskAge,
    AwaitChange,
    Enqueue,
    Look,
    Pause,
    Promote,
    Release,
    TryAcquire,
)
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.protocol import Acquire, Acquired, AcquireEach, Conflicted, EachAcquired, LookAt, Seen
from celery_etcdlock.core.record import Delivery, EndByLease, Record, decode_record, encode_record
from celery_etcdlock.core.replies import (
    Changed,
    EachTried,
    Failed,
    LeaseAge,
    LeaseUnknown,
    Owned,
    Present,
    Queued,
    Released,
)
from celery_etcdlock.errors import LockUnavailable

TERM = 7
UNTIL = 1000.0
END = EndByLease(age_seconds=60, term=TERM)
RECORD = Record(Delivery("first"), "proj.task", "host", 1, 0.0, until=UNTIL, by_lease=END)
KEY = Key("first", 5, 5, RECORD, lease=99)
OLD = replace(KEY, record=replace(RECORD, by_lease=None))
MINE = Key("mine", 9, 9, Record(Delivery("second"), "proj.task", "host", 1, 0.0), lease=98)

seconds = st.floats(-1e6, 1e6)
ages = st.floats(0, 1e4)


class TestEnds:
    @given(seconds, seconds, ages)
    def test_in_the_term_of_its_grant_no_wall_clock_ends_it_early_or_late(
        self, offset: float, now: float, age: float
    ) -> None:
        ends = Expiry(offset).judged(KEY, LeaseAge(age, TERM), now, now)
        assert (ends is None) == (age >= END.age_seconds)
        if ends is not None:
            asked_again_at = ends.ask_at(KEY)
            assert now < asked_again_at
            assert asked_again_at == pytest.approx(now + max(0.05, END.age_seconds - age))
            assert ends.first_over([KEY], now) is None

    @given(seconds, seconds, ages)
    def test_after_an_election_a_clock_a_quarter_of_an_hour_ahead_ends_it(
        self, offset: float, now: float, age: float
    ) -> None:
        ends = Expiry(offset).judged(KEY, LeaseAge(age, TERM + 1), now, now)
        decided_at = UNTIL + LONGEST_SKEW_SECONDS - offset
        assert (ends is None) == (age >= END.age_seconds or now >= decided_at)
        if ends is not None:
            assert ends.ask_at(KEY) <= max(decided_at, now + 0.05)

    def test_an_answer_that_was_long_under_way_puts_nothing_off(self) -> None:
        ends = Expiry(0.0).judged(KEY, LeaseAge(10, TERM), asked_at=UNTIL, now=UNTIL + 4)
        assert ends is not None
        assert ends.ask_at(KEY) == UNTIL + 50

    @given(seconds, seconds)
    def test_a_lease_that_is_not_known_ends_nothing(self, offset: float, now: float) -> None:
        ends = Expiry(offset).judged(KEY, LeaseUnknown(), now, now)
        assert ends is not None
        assert ends.ask_at(KEY) > now

    def test_it_asks_a_moment_after_the_end_by_the_wall_clock(self) -> None:
        ends = Expiry(wall_offset=100.0)
        assert ends.ask_at(KEY) == UNTIL + SKEW_SECONDS - 100
        assert ends.question("a", KEY) == AskAge(99)
        assert Expiry(None).first_over([KEY], 1e9) is None

    @pytest.mark.parametrize("key", [OLD, replace(KEY, lease=0)])
    def test_what_no_lease_tells_ends_by_the_wall_clock_much_later(self, key: Key) -> None:
        assert Expiry(0.0).ask_at(key) == UNTIL + LONGEST_SKEW_SECONDS
        assert Expiry(0.0).question("a", key) == Release("a", "first", 5)

    def test_a_holder_that_runs_has_no_end(self) -> None:
        for key in (MINE, replace(KEY, record=None)):
            assert Expiry(0.0).first_over([key], 1e12) is None
            assert not seems_expired(key, 1e12)

    def test_a_key_written_anew_is_asked_about_anew(self) -> None:
        ends = Expiry(0.0).judged(KEY, LeaseAge(0, TERM), UNTIL + 2, UNTIL + 2)
        assert ends is not None
        assert ends.first_over([replace(KEY, mod_revision=6)], UNTIL + 2) is not None

    def test_the_record_keeps_it(self) -> None:
        assert decode_record(encode_record(RECORD)) == RECORD

    @pytest.mark.parametrize("end", [[1], [1, 2, 3], [-1, 2], [1.5, 2], [True, 2], ["1", 2], 7, None, {}])
    def test_a_record_with_another_end_is_not_understood(self, end: object) -> None:
        import json

        fields = json.loads(encode_record(RECORD)) | {"by_lease": end}
        assert decode_record(json.dumps(fields).encode()) is None


def acquire(**arguments: Any) -> Acquire:
    return Acquire(
        lease=1,
        epoch=1,
        name="a",
        token="mine",
        record=replace(RECORD, until=None, by_lease=None),
        give_up_at=UNTIL + 100,
        deadline=UNTIL + 120,
        wall_offset=0.0,
        **arguments,
    )


NOW = UNTIL + 2
DOWN = Failed(LockUnavailable("down", maybe_applied=True))


class TestMachines:
    def test_a_try_lock_is_in_conflict_with_what_stands(self) -> None:
        machine = acquire()
        assert isinstance(machine.start(NOW), TryAcquire)
        assert machine.on(Present((KEY,), 20), NOW) == AskAge(99)
        assert machine.on(LeaseAge(10, TERM), NOW) == Conflicted((KEY,))

    def test_a_try_lock_takes_the_place_of_what_is_over(self) -> None:
        machine = acquire()
        machine.start(NOW)
        machine.on(Present((KEY,), 20), NOW)
        assert machine.on(LeaseAge(60, TERM), NOW) == Release("a", "first", 5)
        again = machine.on(Released(), NOW)
        assert isinstance(again, TryAcquire)
        assert again.seen_revision == 0, "whatever has come meanwhile must refuse it"
        assert machine.on(Owned(30), NOW) == Acquired(30)

    def test_a_question_without_an_answer_leaves_no_doubt_about_our_own_key(self) -> None:
        machine = acquire()
        machine.start(NOW)
        machine.on(Present((KEY,), 20), NOW)
        assert isinstance(machine.on(DOWN, NOW), TryAcquire)
        assert machine.on(Owned(30), NOW) == Acquired(30, doubtful=False)

    def test_a_waiter_sleeps_until_the_store_says_that_it_is_over(self) -> None:
        machine = acquire(wait_until=NOW + 500)
        assert isinstance(machine.start(NOW), Enqueue)
        assert machine.on(Queued((KEY, MINE), 9), NOW) == AskAge(99)
        assert isinstance(machine.on(LeaseAge(10, TERM), NOW), AwaitChange)
        assert machine.answer_by == NOW + 50
        promotes = machine.on(Changed(), NOW + 50)
        assert isinstance(promotes, Promote)
        assert machine.on(Present((KEY, MINE), 20), NOW + 50) == AskAge(99)
        assert machine.on(LeaseAge(60, TERM), NOW + 50) == Release("a", "first", 5)
        assert isinstance(machine.on(Released(), NOW + 50), Promote)
        assert machine.on(Owned(30), NOW + 50) == Acquired(30)

    def test_a_waiter_that_is_next_anyway_asks_about_nobody(self) -> None:
        machine = acquire(wait_until=NOW + 500)
        machine.start(NOW)
        behind = replace(KEY, create_revision=10)
        assert machine.on(Queued((MINE, behind), 9), NOW) == Acquired(9)

    def test_an_outage_while_it_asks_does_not_end_the_wait(self) -> None:
        machine = acquire(wait_until=NOW + 500)
        machine.start(NOW)
        machine.on(Queued((KEY, MINE), 9), NOW)
        step: Any = None
        for _ in range(50):
            step = machine.on(DOWN, NOW + 130)
            if isinstance(step, Pause):
                step = machine.on(Changed(), NOW + 131)
        assert isinstance(step, Look | Promote)
        assert machine.on(Present((KEY, MINE), 20), NOW + 200) == AskAge(99)

    def test_a_waiter_looks_again_when_the_lease_is_not_known(self) -> None:
        machine = acquire(wait_until=NOW + 500)
        machine.start(NOW)
        machine.on(Queued((KEY, MINE), 9), NOW)
        assert isinstance(machine.on(LeaseUnknown(), NOW), Promote)
        assert isinstance(machine.on(Present((KEY, MINE), 20), NOW), AwaitChange)
        assert machine.answer_by == NOW + 1

    def test_many_tries_ask_about_each(self) -> None:
        tries = tuple(TryAcquire(1, 1, name, f"mine {name}", MINE.record or RECORD) for name in "ab")
        machine = AcquireEach(tries, epoch=1, give_up_at=NOW + 10, deadline=NOW + 12, wall_offset=0.0)
        machine.start(NOW)
        other = replace(KEY, token="other", lease=97)
        assert machine.on(EachTried((Present((KEY,), 20), Present((other,), 20))), NOW) == AskAge(99)
        assert machine.on(LeaseAge(10, TERM), NOW) == AskAge(97)
        assert machine.on(LeaseAge(60, TERM), NOW) == Release("b", "other", 5)
        step = machine.on(Released(), NOW)
        assert getattr(step, "tries", None) == tries, "none of them as if it had seen the keys"
        outcome = machine.on(EachTried((Present((KEY,), 21), Owned(22))), NOW)
        assert outcome == EachAcquired((Conflicted((KEY,)), Acquired(22)))

    def test_a_look_leaves_out_what_is_over(self) -> None:
        machine = LookAt(name="a", deadline=NOW + 5, wall_offset=0.0)
        other = replace(KEY, token="other", lease=97)
        assert machine.start(NOW) == Look("a")
        assert machine.on(Present((KEY, other), 20), NOW) == AskAge(99)
        assert machine.on(LeaseAge(10, TERM), NOW) == Look("a")
        assert machine.on(Present((KEY, other), 20), NOW) == AskAge(97)
        assert machine.on(LeaseAge(60, TERM), NOW) == Release("a", "other", 5)
        assert machine.on(Released(), NOW) == Look("a")
        assert machine.on(Present((KEY,), 21), NOW) == Seen((KEY,))
