"""The arguments that make a key, for people: short, and not where they may be secret."""

from __future__ import annotations

import inspect
import json
from datetime import date
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.core.about import MOST_CHARACTERS
from celery_etcdlock.core.record import Delivery, Record, decode_record, encode_record
from tests.unit.core.key_vectors import naming


def sync(account_id: Any, full: bool = False, password: str | None = None, **more: Any) -> None: ...


def about(*args: Any, hash_key: bytes | None = None, is_shown: Any = None, **kwargs: Any) -> str | None:
    spec = naming("t", inspect.signature(sync), unique_on=["account_id", "full", "password"], hash_key=hash_key)
    names = spec.names_for(args, kwargs, is_shown)
    found: str | None = names.about  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        ("acme", "acme"),
        ("Jane Doe", "'Jane Doe'"),
        ("\x1b[2J\u202e", r"'\x1b[2J\u202e'"),
        (None, "None"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (date(2024, 2, 29), "2024-02-29"),
        ([1, 2, 3, 4, 5], "[1, 2, 3, 4, …]"),
        ([], "[]"),
        ({}, "{}"),
        ([[], {}, [[]], [[1]]], "[[], {}, [[]], [[…]]]"),
        ({"a": 1, "api_key": "x"}, "{a: 1, api_key: ***}"),
        (b"abc", "3 bytes"),
    ],
)
def test_values(value: object, text: str) -> None:
    assert about(value) == f"account_id={text}, full=False, password=***"


def test_a_keyed_digest_says_that_arguments_are_secret() -> None:
    assert about(7, hash_key=b"k" * 16) is None


def test_what_celery_hides_is_hidden_but_a_default_is_in_the_code() -> None:
    assert about(7, full=True, is_shown=lambda text, _: text == "True") == "account_id=***, full=True, password=***"
    assert about(7, is_shown=lambda *_: False) == "account_id=***, full=False, password=***"


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_it_is_short_and_printable(value: object) -> None:
    text = about(value)
    assert text is not None
    assert len(text) <= MOST_CHARACTERS
    assert text.isprintable()


def test_records_carry_it_and_those_of_older_versions_are_read_without() -> None:
    record = Record(Delivery("id"), "t", "h", 1, 1.0, about="account_id=7")
    assert decode_record(encode_record(record)) == record
    older = {key: value for key, value in json.loads(encode_record(record)).items() if key != "about"}
    read = decode_record(json.dumps(older).encode())
    assert read is not None
    assert read.about is None
