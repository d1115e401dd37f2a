"""When the demo prints in colours."""

from __future__ import annotations

import io

import pytest

from examples.demo.style import Style


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_colours_on_a_terminal_only() -> None:
    assert Style.of(Terminal()).colour
    assert not Style.of(io.StringIO()).colour


def test_no_color_and_dumb_terminals_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Style.of(Terminal()).colour
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not Style.of(Terminal()).colour


@pytest.mark.parametrize(("columns", "width"), [("40", 72), ("95", 95), ("300", 110)])
def test_the_width_is_the_terminals_within_bounds(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert Style.of(Terminal()).width == width


def test_plain_text_has_no_escapes() -> None:
    style = Style(colour=False, unicode=True, width=80)
    assert style.good("fine") == "fine"
    assert Style(colour=True, unicode=True, width=80).good("fine") == "\x1b[1;32mfine\x1b[0m"
