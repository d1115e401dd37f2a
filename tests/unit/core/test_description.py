"""Who holds a lock, in words, and texts of others made harmless."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.core.description import in_words
from celery_etcdlock.core.lock_table import KeyEntry, LockTable
from celery_etcdlock.core.name_escaping import escape_name, unescape_name
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.printable import printable
from celery_etcdlock.core.record import Delivery, KeyKind, Record

RECORD = Record(Delivery("id", retries=2), "proj.sync", "vm", 7, 1.0, about="account_id=7")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (RECORD, "task id (proj.sync, retry 2, account_id=7) on vm, pid 7"),
        (replace(RECORD, delivery=Delivery("no task, pid 7"), task="short", about=None), "pid 7 (short) on vm"),
        (
            replace(RECORD, delivery=Delivery("direct-ab")),
            "proj.sync, account_id=7, called as a function, on vm, pid 7",
        ),
        (
            replace(RECORD, kind=KeyKind.CLAIM, delivery=Delivery("id"), about=None),
            "task id (proj.sync), queued, published on vm, pid 7",
        ),
        (
            replace(RECORD, host="a\nb", delivery=Delivery("\x1b")),
            r"task \x1b (proj.sync, account_id=7) on a\nb, pid 7",
        ),
    ],
)
def test_words(record: Record, words: str) -> None:
    assert in_words(record) == words


@given(st.text(st.characters(exclude_categories=[])))
def test_nothing_unseen_reaches_a_terminal_and_letters_stay(text: str) -> None:
    assert printable(text).isprintable()
    assert printable("заказ <b>عربى</b>") == "заказ <b>عربى</b>"


def place(name: str, token: str) -> KeyEntry:
    return KeyEntry(unescape_name(escape_name(name)), escape_name(name), Key(token, 1, 1, RECORD, 1))


@given(st.lists(st.text(st.characters(exclude_categories=[]), min_size=1).map(lambda text: text * 9), unique=True))
def test_a_lock_is_found_by_its_name_and_by_what_is_shown(names: list[str]) -> None:
    table = LockTable(place(name, str(number)) for number, name in enumerate(names))
    for number, name in enumerate(names):
        (found,) = table.named(name)
        assert found.owners[0].key.token == str(number)
        assert found in table.named(escape_name(name)) + table.named(printable(found.name))


def test_two_long_names_that_begin_alike_are_two_locks() -> None:
    names = ["я" * 100 + end for end in "ab"]
    table = LockTable(place(name, name[-1]) for name in names)
    assert len(table.locks()) == 2
    assert [table.named(name)[0].owners[0].key.token for name in names] == ["a", "b"]
    assert all(lock.name.startswith("я" * 20) and lock.name.isprintable() for lock in table.locks())


@given(st.text("%FfEe80/~abc", min_size=1))
def test_whatever_is_written_under_our_prefix_is_shown(segment: str) -> None:
    unescape_name(segment)
