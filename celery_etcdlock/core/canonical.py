"""A value as text: typed, unambiguous, the same in every process and Python version.

The text is what goes into a lock key's digest, so two rules hold:

* **Different values differ.** Each type has a form of its own: strings are quoted, containers bracketed, and
  everything that JSON has no word for has its type's name around it, ``date(2024-02-29)``. The table in
  ``docs/keys.md`` lists what may share a text; nothing else does.
* **One value, one text, on both sides of the broker.** Celery serialises arguments as JSON by default. The
  producer sees a tuple where the worker sees a list, the key ``1`` where the worker sees ``"1"``. Both must
  use the same lock, so whatever JSON makes equal is equal here.

Any other value is refused. Its ``repr()`` may hold its address; that would make a key that never repeats, and a lock
that never locks. Errors name the path to the value and its type, never its content, which may be secret.

The text is pure ASCII. It is bounded: no cycles, `MAX_DEPTH` levels, `MAX_VALUES` values.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from json.encoder import encode_basestring_ascii
from typing import Any
from uuid import UUID

from celery_etcdlock.errors import InvalidKey

MAX_DEPTH = 50
MAX_VALUES = 1_000_000  # shared lists within lists grow exponentially long before MAX_DEPTH

# Beyond this Python may refuse to write an int in decimal (`sys.set_int_max_str_digits`), so hex it is.
_MAX_DECIMAL_BITS = 2048
_KOMBU_ENVELOPE = {"__type__", "__value__"}
_REMEDY = (
    "Pass an id or another plain value, leave the argument out of unique_on, "
    "or make the key yourself with lock_key=callable"
)


def canonical_text(value: object, argument: str) -> str:
    """The canonical text of ``value``. Raises `InvalidKey` with the path to what has none, from ``argument`` on."""
    try:
        return _Walk().text(value)
    except _RefusedError as refused:
        path = argument + "".join(reversed(refused.path))
        raise InvalidKey(f"argument {path} can't be part of a lock's key: {refused}. {_REMEDY}.") from None


class _RefusedError(Exception):
    """A value has no text. The path grows from the inside out, while this passes through the containers."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []


class _Walk:
    """One value on its way to text; remembers which containers it is inside of, and how much it has seen."""

    __slots__ = ("_inside", "_seen")

    def __init__(self) -> None:
        self._inside: set[int] = set()
        self._seen = 0

    def text(self, value: Any) -> str:
        base = base_of(value)
        if base in _SCALARS:
            return _SCALARS[base](value)
        if base in _CONTAINERS:
            return self._within(_CONTAINERS[base], value)
        if isinstance(value, Enum):
            raise _RefusedError(
                f"it is a member of the Enum {_type_name(type(value))}, which has no plain value "
                "(only an Enum that is also a str or an int has); pass its .value"
            )
        raise _RefusedError(f"it is of type {_type_name(type(value))}, which has no canonical form")

    def _within(self, write: Callable[[_Walk, Any], str], container: Any) -> str:
        me = id(container)
        if me in self._inside:
            raise _RefusedError("it contains itself")
        if len(self._inside) >= MAX_DEPTH:
            raise _RefusedError(f"it is nested deeper than {MAX_DEPTH} levels")
        self._seen += len(container)
        if self._seen > MAX_VALUES:
            raise _RefusedError(f"it holds more than {MAX_VALUES} values")
        self._inside.add(me)
        try:
            return write(self, container)
        finally:
            self._inside.discard(me)

    def _sequence(self, items: Any) -> str:
        texts: list[str] = []
        try:
            for item in items:
                texts.append(self.text(item))
        except _RefusedError as refused:
            refused.path.append(f"[{len(texts)}]")
            raise
        return f"[{','.join(texts)}]"

    def _set(self, items: Any) -> str:
        try:
            # A set of texts: a str of two surrogates and the character they make are two strings, but one text.
            texts = sorted({self.text(item) for item in items})
        except _RefusedError as refused:
            refused.path.append("{...}")
            raise
        return f"set({','.join(texts)})"

    def _mapping(self, items: Any) -> str:
        texts: dict[str, str] = {}
        for number, (key, value) in enumerate(items.items(), 1):
            try:
                name = _key(key)
                if name in texts:
                    raise _RefusedError("its dict has two keys that JSON writes alike, like 1 and '1'")
                texts[name] = self.text(value)
            except _RefusedError as refused:
                refused.path.append(_key_in_path(key, number))
                raise
        if len(texts) == 2 and items.keys() == _KOMBU_ENVELOPE:
            raise _RefusedError("kombu takes a dict of just the keys __type__ and __value__ for something else")
        return "{" + ",".join([f"{name}:{texts[name]}" for name in sorted(texts)]) + "}"


def base_of(value: object) -> type | None:
    """The type of the table that ``value`` is an instance of, or none.

    By the true type's bases, so a mock that claims another class gets nowhere. A datetime is a datetime
    before it is a date, and a bool a bool before it is an int.
    """
    for kind in type(value).__mro__:
        if kind in _SCALARS or kind in _CONTAINERS:
            return kind
    return None


def decimal_digits(value: Decimal) -> str:
    """A Decimal by its numeric value, so ``1.0`` and ``1.00`` agree, whatever the decimal context is."""
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        if exponent != "F":
            raise _RefusedError("it is a NaN, which doesn't even equal itself")
        return "-inf" if sign else "inf"
    significant = "".join(map(str, digits)).lstrip("0")
    stripped = significant.rstrip("0")
    if not stripped:
        return "0"
    exponent += len(significant) - len(stripped)
    if 0 <= exponent <= 40:
        text = stripped + "0" * exponent
    elif -40 <= exponent < 0:
        padded = stripped.rjust(1 - exponent, "0")
        text = f"{padded[:exponent]}.{padded[exponent:]}"
    else:
        text = f"{stripped}E{exponent:+d}"
    return f"-{text}" if sign else text


def _float(value: float) -> str:
    if value != value:
        raise _RefusedError("it is a NaN, which doesn't even equal itself")
    return float.__repr__(value) if value else "0.0"  # -0.0 is 0.0


def _bytes(value: bytes | bytearray | memoryview) -> str:
    return f"bytes({bytes(value).hex()})"


def _datetime(value: datetime) -> str:
    if value != value:  # pandas.NaT claims to be a datetime
        raise _RefusedError("it is a not-a-time value, which doesn't even equal itself")
    offset = value.utcoffset()
    wall = datetime(value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond)
    if offset is None:
        return f"datetime({wall.isoformat()})"
    try:
        return f"datetime({wall.replace(tzinfo=timezone(offset)).astimezone(timezone.utc).isoformat()})"
    except OverflowError:  # within a day of year 1 or 9999, and beyond it in UTC
        return f"datetime(0001-01-01T00:00:00+00:00+{_microseconds(wall - datetime.min - offset)}us)"


def _microseconds(value: timedelta) -> int:
    return (value.days * 86400 + value.seconds) * 1_000_000 + value.microseconds


def _key(key: Any) -> str:
    """A dict's key, as JSON would write it: always a string."""
    kind = base_of(key)
    if kind is str:
        return encode_basestring_ascii(key)
    if kind is bool or kind is type(None):
        return f'"{_SCALARS[kind](key)}"'
    if kind is int and key.bit_length() <= _MAX_DECIMAL_BITS:
        return f'"{int.__repr__(key)}"'
    if kind is float:
        if key != key:
            raise _RefusedError("its key in the dict is a NaN")
        if key in (float("inf"), float("-inf")):
            return '"Infinity"' if key > 0 else '"-Infinity"'
        return f'"{float.__repr__(key)}"'
    raise _RefusedError(f"its key in the dict is of type {_type_name(type(key))}, which JSON has no key for")


def _key_in_path(key: Any, number: int) -> str:
    """A short word is a field's name; anything else may be data, so only its number is shown."""
    if type(key) is str and key.isidentifier() and len(key) <= 40:
        return f".{key}"
    return f"[key {number}]"


def _type_name(kind: type) -> str:
    module = kind.__module__
    return repr(kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}")


_SCALARS: dict[type, Callable[[Any], str]] = {
    str: encode_basestring_ascii,
    bool: lambda value: "true" if value else "false",
    type(None): lambda value: "null",
    int: lambda value: int.__repr__(value) if value.bit_length() <= _MAX_DECIMAL_BITS else f"{int(value):#x}",
    float: _float,
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _bytes,
    datetime: _datetime,
    date: lambda value: f"date({date.isoformat(value)})",
    time: lambda value: f"time({time.isoformat(value)})",
    timedelta: lambda value: f"timedelta({_microseconds(value)}us)",
    Decimal: lambda value: f"decimal({decimal_digits(value)})",
    UUID: lambda value: f"uuid({UUID(int=value.int)})",
}
_CONTAINERS: dict[type, Callable[[_Walk, Any], str]] = {
    list: _Walk._sequence,
    tuple: _Walk._sequence,
    dict: _Walk._mapping,
    set: _Walk._set,
    frozenset: _Walk._set,
}
