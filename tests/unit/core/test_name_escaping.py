from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.core.name_escaping import MAX_SEGMENT_BYTES, escape_name
from celery_etcdlock.errors import InvalidKey

any_text = st.text(st.characters(exclude_categories=[]), min_size=1)
long_text = st.builds(lambda unit, times: unit * times, any_text, st.integers(1, 400))
odd_text = st.text("a/~%é\ud800:", min_size=1, max_size=80)
names = any_text | long_text | odd_text


@pytest.mark.parametrize(
    ("name", "segment"),
    [
        ("app.tasks.sync:0a1b=c,d@e-f_g", "app.tasks.sync:0a1b=c,d@e-f_g"),
        ("a/b", "a%2Fb"),
        ("a~b", "a%7Eb"),
        ("100%", "100%25"),
        ("é", "%C3%A9"),
        ("a b\n\0", "a%20b%0A%00"),
        ("\ud800", "%ED%A0%80"),
        ("a" * 200, "a" * 200),
    ],
)
def test_table(name: str, segment: str) -> None:
    assert escape_name(name) == segment


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a" * 201, "a" * 150),
        ("a" * 149 + "/" * 60, "a" * 149),
        ("a" * 148 + "/" * 60, "a" * 148),
        ("a" * 147 + "/" * 60, "a" * 147 + "%2F"),
    ],
)
def test_a_cut_halves_no_escape(name: str, kept: str) -> None:
    assert escape_name(name).partition("~")[0] == kept


def test_digests_of_cut_names_are_pinned() -> None:  # by sha256sum(1)
    assert escape_name("a" * 10_000) == "a" * 150 + "~27dd1f61b867b6a0f6e9d8a41c43231d"
    assert escape_name("é/" * 5_000) == "%C3%A9%2F" * 16 + "%C3%A9~675f24ef54c36adbcd3b53ef37781908"


@given(names)
def test_shape(name: str) -> None:
    segment = escape_name(name)
    assert 0 < len(segment) <= MAX_SEGMENT_BYTES
    assert re.fullmatch(r"(?:[A-Za-z0-9._:=,@-]|%[0-9A-F]{2})+(?:~[0-9a-f]{32})?", segment)


@given(names)
def test_an_uncut_segment_gives_the_name_back(name: str) -> None:
    segment = escape_name(name)
    if "~" not in segment:
        assert unquote(segment, errors="surrogatepass") == name


@given(names, names)
def test_no_name_s_range_holds_another_s_keys(a: str, b: str) -> None:
    for left, right in ((a, b), (a, a + "/" + b), (a, a + b)):
        if left != right:
            assert not f"{escape_name(right)}/token".startswith(f"{escape_name(left)}/")


def test_an_explicit_name_cannot_collide_with_a_cut_one() -> None:
    cut = escape_name("a" * 500)
    assert escape_name(cut) != cut


def test_empty_name() -> None:
    with pytest.raises(InvalidKey) as caught:
        escape_name("")
    assert str(caught.value) == "a lock's name can't be empty"
