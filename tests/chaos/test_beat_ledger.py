"""The ledger of beats finds what it is for."""

from __future__ import annotations

from tests.chaos.beats.ledger import ALLOWED_SECONDS, NO_DOUBT, Account, Arrival, Doubt, of_interval, of_minutes

#: A whole minute.
START = 1_800_000_000.0


def arrivals(*times: float, due: str = "") -> list[Arrival]:
    return [Arrival("e", START + at, f"id{number}", due and f"{due}{at}") for number, at in enumerate(times)]


def counts(account: Account) -> tuple[int, int, int, int]:
    return account.once, account.late, account.twice, account.lost


def interval(sent: list[Arrival], ends: float, period: float = 1.0, doubt: Doubt = NO_DOUBT) -> Account:
    return of_interval(sent, period, START, START + ends, doubt)


def test_an_interval_that_is_kept() -> None:
    assert counts(interval(arrivals(1.0, 2.01, 3.02, 4.0), 4.5)) == (4, 0, 0, 0)


def test_a_gap_is_one_late_tick_and_its_successor_is_not_twice() -> None:
    account = interval(arrivals(1.0, 6.0, 6.3, 7.3), 8)
    assert counts(account) == (3, 1, 0, 0)
    assert account.latest_seconds == 4.0


def test_two_beats_are_twice() -> None:
    assert counts(interval(arrivals(1.0, 1.1, 2.0, 2.1, 3.0), 3.5)) == (3, 0, 2, 0)


def test_a_copy_by_its_id_or_its_due_time() -> None:
    copy = Arrival("e", START + 1.9, "id0")
    assert counts(interval([*arrivals(1.0, 2.0), copy], 3)) == (2, 0, 1, 0)
    same_due = [Arrival("e", START + at, f"id{at}", "2026") for at in (1.0, 2.0)]
    assert counts(interval(same_due, 3)) == (1, 0, 1, 0)


def test_a_tick_that_a_fault_hit_may_come_again_once_under_its_id() -> None:
    sent = arrivals(1.0, 2.0, due="at")
    copy = Arrival("e", START + 2.9, sent[1].ident, sent[1].due)
    later = Arrival("e", START + 2.95, sent[1].ident, sent[1].due)
    other = Arrival("e", START + 2.9, "another id", sent[1].due)
    at_the_send = Doubt(START + 2.1, START + 2.1)

    def again(doubt: Doubt, *copies: Arrival) -> tuple[int, int]:
        account = interval([*sent, *copies], 3, doubt=doubt)
        return account.again, account.twice

    assert again(at_the_send, copy) == (1, 0)
    assert again(at_the_send, copy, later) == (1, 1)
    assert again(at_the_send, other) == (0, 1)
    assert again(Doubt(START + 3.5, START + 3.5), copy) == (0, 1)
    assert again(NO_DOUBT, copy) == (0, 1)


def test_an_interval_that_stops_is_lost() -> None:
    assert interval(arrivals(1.0, 2.0), ALLOWED_SECONDS + 13).lost == 11
    assert interval([], ALLOWED_SECONDS + 3).lost == 3


def test_minutes() -> None:
    sent = arrivals(0.1, 60.0, 117.5, 183.0)
    account = of_minutes(sent, START - 10, START + 200 + ALLOWED_SECONDS)
    assert counts(account) == (3, 1, 0, 0)
    twice = of_minutes(arrivals(0.1, 20.0), START - 10, START + 30 + ALLOWED_SECONDS)
    assert counts(twice) == (1, 0, 1, 0)
    lost = of_minutes(arrivals(0.1, 120.0), START - 10, START + 150 + ALLOWED_SECONDS)
    assert counts(lost) == (2, 0, 0, 1)
