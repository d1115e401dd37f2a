"""What a user may set, declared where it is typed: the fields of a dataclass, each with default, check and meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Declared:
    """One option or setting. ``default`` is in the form in which a user would write it."""

    name: str
    default: Any
    #: Returns the value as it is used, or raises ``ValueError`` ("must be ...").
    check: Callable[[Any], Any]
    doc: str

    def checked(self, value: Any) -> Any:
        """``None`` needs no check where it is the default."""
        return None if value is None and self.default is None else self.check(value)


def declared(default: Any, check: Callable[[Any], Any], doc: str, *, secret: bool = False) -> Any:
    """A field of a dataclass that users set; a secret isn't in its ``repr``."""
    return field(repr=not secret, metadata={"default": default, "check": check, "doc": doc})


def declared_in(made: type, prefix: str = "") -> tuple[Declared, ...]:
    """All that ``made`` declares, by the names that users know: those of its fields behind ``prefix``."""
    return tuple(Declared(prefix + each.name, **each.metadata) for each in fields(made))
