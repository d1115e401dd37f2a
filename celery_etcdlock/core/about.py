"""The arguments that make a lock's key, short and for people: ``account_id=7``.

A digest tells nobody which account is locked. So the record of a lock may carry its arguments, in at most
``MOST_CHARACTERS``; they decide nothing. What may be secret isn't written:

* nothing at all where the digests are keyed (``etcdlock_hash_key``): that says that arguments may not be guessed;
* no value of an argument whose name says that it is a credential;
* no value that Celery itself doesn't show: who hides an argument from its log by ``argsrepr`` or ``kwargsrepr`` hides
  it here too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from typing import Any
from uuid import UUID

from celery_etcdlock.core.canonical import base_of
from celery_etcdlock.core.printable import printable

MOST_CHARACTERS = 80
MOST_ITEMS = 4
_CREDENTIAL = re.compile(r"pass(word|wd|phrase)?$|pwd$|secret|token|credential|api_?key|private_?key", re.IGNORECASE)
_HIDDEN = "***"
_CUT = "…"
_plain = re.compile(r"[\w.@:/+-]+").fullmatch
_WRITTEN_OUT = (bool, type(None), float, Decimal, UUID, datetime, date, time, timedelta)


IsShown = Callable[[str, Any], bool]


def about(arguments: Iterable[tuple[str, Any, IsShown | None]]) -> str:
    """``arguments`` in words. Each has a name, a value, and a function of its text and value: may it be shown?"""
    parts: list[str] = []
    left = MOST_CHARACTERS
    for name, value, is_shown in arguments:
        if left <= 0:
            break
        parts.append(f"{name}={_shown(name, value, is_shown)}")
        left -= len(parts[-1]) + 2
    text = ", ".join(parts)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + _CUT


def _shown(name: str, value: Any, is_shown: IsShown | None) -> str:
    if _CREDENTIAL.search(name):
        return _HIDDEN
    text = value_in_words(value)
    return text if is_shown is None or is_shown(text, value) else _HIDDEN


def value_in_words(value: Any, depth: int = 2) -> str:
    """A value that a key can be made of (``core.canonical``), in short. Never calls an unknown object."""
    if isinstance(value, Enum):
        value = value.value
    base = base_of(value)
    if base is str:
        text = str.__str__(value)
        cut = text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + _CUT
        return cut if _plain(cut) else repr(cut)
    if base is int:
        return int.__repr__(value) if value.bit_length() <= 256 else f"int of {value.bit_length()} bits"
    if base in _WRITTEN_OUT:
        return printable(str(value))
    if base in (bytes, bytearray):
        return f"{len(value)} bytes"
    if base in (list, tuple, set, frozenset):
        items = (value_in_words(each, depth - 1) for each in value)
        return f"[{_first(items, depth)}]"
    if base is dict:
        items = (f"{value_in_words(key, 0)}: {_item(key, each, depth - 1)}" for key, each in value.items())
        return f"{{{_first(items, depth)}}}"
    return _CUT


def _item(key: Any, value: Any, depth: int) -> str:
    return _HIDDEN if isinstance(key, str) and _CREDENTIAL.search(key) else value_in_words(value, depth)


def _first(items: Iterator[str], depth: int) -> str:
    some = list(islice(items, MOST_ITEMS + 1)) if depth else []
    return ", ".join(some) if 0 < len(some) <= MOST_ITEMS else ", ".join([*some[:MOST_ITEMS], _CUT])
