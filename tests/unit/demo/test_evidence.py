"""The judge of the demo: it must see every overlap, and nothing where bodies only follow each other."""

from __future__ import annotations

from examples.demo.evidence import most_at_once, overlaps, tokens_rise
from examples.demo.journal import Span


def span(start: float, end: float | None, *, key: str = "k", worker: str = "alpha", token: int = 1) -> Span:
    return Span(key, worker, f"call-{start}", token, 1, start, end)


def test_bodies_that_follow_each_other_do_not_overlap() -> None:
    assert overlaps([span(0, 1), span(1, 2), span(2.5, 3)]) == []


def test_an_overlap_is_found_whatever_the_order_and_the_worker() -> None:
    first, second = span(0, 1), span(0.9, 2, worker="beta")
    [overlap] = overlaps([second, first])
    assert (overlap.first, overlap.second) == (first, second)
    assert (overlap.start, overlap.end) == (0.9, 1)
    assert "ran at once for 0.10 s" in str(overlap)


def test_keys_are_judged_apart() -> None:
    assert overlaps([span(0, 1, key="a"), span(0, 1, key="b")]) == []


def test_a_long_body_overlaps_all_that_start_within_it() -> None:
    long = span(0, 10)
    found = overlaps([long, span(1, 2), span(3, 4), span(11, 12)])
    assert [overlap.second.start for overlap in found] == [1, 3]
    assert {overlap.first for overlap in found} == {long}


def test_a_body_that_never_ended_overlaps_all_later_ones() -> None:
    [overlap] = overlaps([span(0, None), span(5, 6)])
    assert overlap.end == 6
    assert "still do" in str(overlaps([span(0, None), span(5, None)])[0])


def test_most_at_once_counts_ends_before_starts() -> None:
    assert most_at_once([]) == 0
    assert most_at_once([span(0, 1), span(1, 2)]) == 1
    assert most_at_once([span(0, 3), span(1, 2), span(1.5, None), span(2, 4)]) == 3


def test_tokens_must_rise_strictly_and_for_each_key() -> None:
    assert tokens_rise([span(0, 1, token=5), span(2, 3, token=9), span(1, 2, key="other", token=1)])
    assert not tokens_rise([span(0, 1, token=5), span(2, 3, token=5)])
    assert not tokens_rise([span(0, 1, token=9), span(2, 3, token=5)])
    assert not tokens_rise([span(0, 1, token=0)]), "0 is no token at all"
