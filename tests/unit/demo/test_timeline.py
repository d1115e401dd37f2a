"""The demo's timeline, in plain text and in colours."""

from __future__ import annotations

import re

import pytest

from examples.demo.journal import Span
from examples.demo.style import Style
from examples.demo.timeline import draw

PLAIN = Style(colour=False, unicode=False, width=72)
WORKERS = ("alpha", "beta")


def span(start: float, end: float | None, worker: str = "alpha", token: int = 7, **more: object) -> Span:
    return Span("job", worker, f"call-{start}", token, 1, start, end, **more)  # type: ignore[arg-type]


def rows(lines: list[str]) -> dict[str, str]:
    """Bars by worker."""
    found = {}
    for line in lines:
        match = re.match(r"  (?:job|   )  (alpha|beta ) ( .*)?$", line)
        if match:
            found[match[1].strip()] = (match[2] or "")[1:]
    return found


def test_bars_stand_where_and_as_long_as_bodies_ran() -> None:
    lines = draw([span(10.0, 15.0), span(15.0, 20.0, "beta", 12)], WORKERS, PLAIN)
    bars = rows(lines)
    # 58 cells for 10 s
    assert bars["alpha"] == "7" + "#" * 28
    assert bars["beta"] == " " * 29 + "12" + "=" * 27
    assert lines[-1].split() == ["|0", "s", "|2", "s", "|4", "s", "|6", "s", "|8", "s"]


def test_two_bodies_of_one_worker_keep_apart_by_their_tokens() -> None:
    bars = rows(draw([span(0, 5, token=7), span(5, 10, token=9)], WORKERS, PLAIN))
    assert bars["alpha"] == "7" + "#" * 28 + "9" + "#" * 28


def test_a_body_too_short_for_its_token_is_still_seen() -> None:
    bars = rows(draw([span(0, 0.001, token=12345), span(9.99, 10.0, "beta")], WORKERS, PLAIN))
    assert bars["alpha"] == "#"
    assert bars["beta"] == " " * 57 + "="


def test_a_kill_is_an_x_with_the_time_that_its_lock_lingered() -> None:
    lines = draw([span(0, 5, killed=True, freed=7.5), span(9, 10, "beta")], WORKERS, PLAIN)
    assert rows(lines)["alpha"] == "7" + "#" * 27 + "X" + "." * 15
    assert lines[-1].strip().startswith("X killed")


def test_two_at_once_are_pointed_at() -> None:
    lines = draw([span(0, 6), span(4, 10, "beta")], WORKERS, PLAIN)
    [pointer] = [line for line in lines if "TWO AT ONCE" in line]
    start = len("  job  alpha  ")
    assert 11 <= pointer.count("!") <= 13
    # Rows begin where they begin elsewhere.
    assert abs(pointer.index("!") - start - 58 * 4 // 10) <= 1
    assert not [line for line in draw([span(0, 5), span(5, 9)], WORKERS, PLAIN) if "!" in line]


def test_a_body_that_still_runs_reaches_to_the_end() -> None:
    bars = rows(draw([span(0, None), span(8, 10, "beta")], WORKERS, PLAIN))
    assert bars["alpha"] == "7" + "#" * 57


def test_nothing_ran() -> None:
    assert draw([], WORKERS, PLAIN) == ["(nothing ran)"]


def test_one_moment_is_no_division_by_zero() -> None:
    assert rows(draw([span(3.0, 3.0)], WORKERS, PLAIN))["alpha"]


@pytest.mark.parametrize("width", [72, 90, 110])
@pytest.mark.parametrize("colour", [False, True])
def test_no_line_is_wider_than_the_terminal(width: int, colour: bool) -> None:
    spans = [span(at / 3, at / 3 + 0.5, WORKERS[at % 2], at * 100) for at in range(40)]
    for line in draw(spans, WORKERS, Style(colour, True, width)):
        assert len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= width


def test_colours_only_where_they_are_wanted() -> None:
    spans = [span(0, 5, killed=True, freed=6), span(5, 9, "beta")]
    plain = "\n".join(draw(spans, WORKERS, PLAIN))
    assert plain.isascii()
    assert "\x1b" not in plain
    coloured = "\n".join(draw(spans, WORKERS, Style(True, True, 72)))
    assert "\x1b[46m" in coloured
    assert coloured.count("\x1b[") == 2 * coloured.count("\x1b[0m"), "every colour is ended"
