"""`lock_key` as a format template: ``"invoice:{invoice_id}"``, ``"{order[id]}:{day:%Y-%m}"``.

A template is checked when the task is defined: each field begins with the name of one of the task's
arguments. Only plain scalars are rendered, and by their base value: an object's ``str()`` may hold its
address, and a str Enum's changed between Python 3.11 and 3.12.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from string import Formatter
from typing import Any, NamedTuple
from uuid import UUID

from celery_etcdlock.core.canonical import base_of, decimal_digits
from celery_etcdlock.core.value_checks import no_such_argument
from celery_etcdlock.errors import InvalidKey, InvalidOption

_field = re.compile(r"(?P<argument>[^.\[\]]+)(?P<steps>(?:\.[^.\[\]]+|\[[^\[\]]+\])*)").fullmatch
_steps = re.compile(r"\.([^.\[\]]+)|\[([^\[\]]+)\]").findall


class _Part(NamedTuple):
    literal: str
    argument: str | None = None
    steps: tuple[tuple[str, str], ...] = ()  # (attribute, "") or ("", index)
    format_spec: str = ""
    field: str = ""


class NameTemplate:
    """A parsed template. Raises `InvalidOption` when it can't be one for a task whose arguments are ``known``.

    ``open_ended`` says that the task takes ``**kwargs``, so that a field may name what only they can carry.
    """

    def __init__(self, template: str, known: Sequence[str], *, open_ended: bool = False) -> None:
        def refuse(reason: str) -> InvalidOption:
            return InvalidOption(f"lock_key {template!r} {reason}")

        if not template:
            raise InvalidOption("lock_key is empty; leave it out to lock on the task's name")
        try:
            parsed = list(Formatter().parse(template))
        except ValueError as error:
            raise refuse(f"isn't a format template: {error}; write {{{{ and }}}} for braces") from None
        parts: list[_Part] = []
        for literal, field, format_spec, conversion in parsed:
            if field is None:
                parts.append(_Part(literal))
                continue
            if not field or field.isdigit():
                has = ", ".join(known) or "no arguments at all"
                raise refuse(f"has the positional field {{{field}}}: name an argument, {has}")
            match = _field(field)
            if match is None:
                raise refuse(
                    f"has the field {{{field}}}, which can't be read: use {{name}}, {{name.attribute}} or {{name[key]}}"
                )
            argument = match["argument"]
            if argument not in known and not (open_ended and argument.isidentifier()):
                raise refuse(no_such_argument(argument, known))
            steps = tuple(_steps(match["steps"]))
            for attribute, _ in steps:
                if attribute.startswith("_"):
                    raise refuse(f"reads the private attribute {attribute!r}: use a public one")
            if conversion is not None:
                raise refuse(
                    f"converts {{{field}!{conversion}}}: only plain values are rendered, leave !{conversion} out"
                )
            if format_spec and "{" in format_spec:
                raise refuse(f"has a field within the format of {{{field}}}: write the format out")
            parts.append(_Part(literal, argument, steps, format_spec or "", field))
        self._parts = tuple(parts)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments that it names."""
        return tuple(part.argument for part in self._parts if part.argument is not None)

    def render(self, bound: Mapping[str, Any]) -> str:
        """The text for a call's bound arguments. Raises `InvalidKey`, which names the field."""
        return "".join(
            part.literal if part.argument is None else part.literal + self._render_field(part, bound)
            for part in self._parts
        )

    def _render_field(self, part: _Part, bound: Mapping[str, Any]) -> str:
        def refuse(reason: str) -> InvalidKey:
            return InvalidKey(f"lock_key's field {{{part.field}}} {reason}")

        try:
            value = bound[str(part.argument)]
        except KeyError:
            raise refuse("names an argument that this call doesn't have") from None
        try:
            for attribute, index in part.steps:
                value = getattr(value, attribute) if attribute else _item(value, index)
        except Exception as error:
            raise refuse(
                f"can't be read from the argument: {type(error).__name__}. JSON arguments arrive as dicts, "
                "read them with {name[key]}; or use lock_key=callable"
            ) from error
        base = base_of(value)
        if base not in _PLAIN:
            raise refuse(
                f"is of type {type(value).__qualname__!r}, which has no safe text: "
                "use a field of it that is a str or a number, or lock_key=callable"
            )
        if value.is_nan() if isinstance(value, Decimal) else value != value:  # a signalling NaN raises at !=
            raise refuse("is a NaN, which doesn't even equal itself")
        try:
            return _PLAIN[base](value, part.format_spec)
        except Exception as error:
            raise refuse(f"doesn't take the format {part.format_spec!r}: {type(error).__name__}") from error


def _item(value: Any, index: str) -> Any:
    """``{name[3]}`` is the third of a list, but a dict's key may be 3 here and, after JSON, "3" there."""
    if isinstance(value, dict) and index in value:
        return value[index]
    return value[int(index) if index.isdecimal() else index]


# By unbound methods of the base: a subclass may format itself in its own way, and is gone after JSON.
_PLAIN: dict[type | None, Callable[[Any, str], str]] = {
    str: lambda value, spec: format(str.__str__(value), spec),
    bool: format,
    int: lambda value, spec: format(int.__add__(value, 0), spec),
    float: lambda value, spec: format(float.__add__(value, 0.0), spec),  # makes -0.0 0.0, too
    type(None): format,
    Decimal: lambda value, spec: Decimal.__format__(value, spec) if spec else decimal_digits(value),
    UUID: lambda value, spec: format(str(UUID(int=value.int)), spec),
    datetime: lambda value, spec: datetime.strftime(value, spec) if spec else datetime.isoformat(value),
    date: lambda value, spec: date.strftime(value, spec) if spec else date.isoformat(value),
}
