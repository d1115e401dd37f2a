"""A call's arguments by name, defaults filled in, so that ``f(1)``, ``f(x=1)`` and ``f(1, full=False)`` are one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import BoundArguments, Parameter, Signature
from typing import Any

from celery_etcdlock.errors import InvalidKey


def bound(signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BoundArguments:
    """Raises ``InvalidKey`` for a call that doesn't fit."""
    try:
        found = signature.bind(*args, **kwargs)
    except TypeError as error:
        names = ", ".join(signature.parameters)
        raise InvalidKey(f"the call doesn't fit the task's arguments ({names}): {error}") from None
    found.apply_defaults()
    return found


def by_name(found: BoundArguments) -> dict[str, Any]:
    """The arguments by name, also those that only ``**kwargs`` carries."""
    flat: dict[str, Any] = {}
    for name, value in found.arguments.items():
        if found.signature.parameters[name].kind is Parameter.VAR_KEYWORD:
            flat = {**value, **flat}
        flat[name] = value
    return flat


class CallArguments:
    """By the signature of the task itself. Where a decorator hides it: ``decorated_signature``."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self.names = tuple(signature.parameters)
        parameters = signature.parameters.values()
        simple = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        self._is_simple = all(each.kind in simple for each in parameters)
        self._positional = [each.name for each in parameters if each.kind is Parameter.POSITIONAL_OR_KEYWORD]
        self._defaults = {each.name: each.default for each in parameters if each.default is not Parameter.empty}

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """As ``by_name``. Raises ``InvalidKey``."""
        if self._is_simple and len(args) <= len(self._positional):
            # The common call, at a third of the price of `Signature.bind`; any misfit is left to that.
            given = dict(zip(self._positional, args, strict=False))
            if not kwargs or given.keys().isdisjoint(kwargs):
                found = {**self._defaults, **given, **kwargs}
                if found.keys() == self._signature.parameters.keys():
                    return found
        return by_name(bound(self._signature, args, kwargs))

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """What a callable key is called with. Raises ``InvalidKey``."""
        found = bound(self._signature, args, kwargs)
        return found.args, found.kwargs
