"""The arguments by name of a call whose function is wrapped in a decorator that takes any arguments.

The caller calls the wrapper, and Celery checks the wrapper's signature, mostly ``(*args, **kwargs)``. A key is made of
the names of the function inside (``functools.wraps`` says which function). In between, the wrapper may hand all
arguments on, add one (a session, a client), or remove one. So:

* Arguments that the wrapper names are bound by its signature. Those that only the wrapper names, it removes.
* If the rest fits the function inside, the wrapper hands it on as it is.
* Else the wrapper adds arguments, none of them one that the key is made of. If the value of a name in the key depends
  on which ones it adds, nobody can know it, and the call is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter, Signature
from itertools import chain, combinations
from typing import Any

from celery_etcdlock.core.call_arguments import bound, by_name
from celery_etcdlock.errors import InvalidKey

#: The most added arguments that are looked for.
MOST_ADDED = 3
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def hides(outer: Signature, inner: Signature) -> bool:
    """Whether ``outer`` takes what it doesn't name, so that only ``inner`` has names for it."""
    return outer != inner and any(each.kind in _VARIABLE for each in outer.parameters.values())


class Decorated:
    """As ``CallArguments``. ``chosen`` are the names that the key is made of; none: all."""

    def __init__(self, outer: Signature, inner: Signature) -> None:
        self._outer = outer
        self._inner = inner
        self.chosen: frozenset[str] = frozenset()
        self._named = [name for name, each in outer.parameters.items() if each.kind not in _VARIABLE]
        self._takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in inner.parameters.values())

    @property
    def names(self) -> tuple[str, ...]:
        inner = [name for name, each in self._inner.parameters.items() if each.kind not in _VARIABLE]
        return tuple(dict.fromkeys([*inner, *self._named]))

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The call's arguments by name, defaults filled in. Raises ``InvalidKey``."""
        named, args, kwargs = self._handed_on(args, kwargs)
        known = kwargs if self._takes_any else {k: v for k, v in kwargs.items() if k in self._inner.parameters}
        try:
            found = self._inner.bind(*args, **known)
        except TypeError:
            return {**kwargs, **self._with_added(args, known), **named}
        found.apply_defaults()
        return {**kwargs, **by_name(found), **named}

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """What a callable key is called with: as the function inside, where that is known, else as the task."""
        try:
            found = self._inner.bind(*args, **kwargs)
        except TypeError:
            bound(self._outer, args, kwargs)
            return args, kwargs
        found.apply_defaults()
        return found.args, found.kwargs

    def _handed_on(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Sequence[Any], Mapping[str, Any]]:
        """What the wrapper names, and what comes to the function inside but for what is added."""
        given = bound(self._outer, args, kwargs).arguments
        named = {name: given[name] for name in self._named}
        if all(name in self._inner.parameters for name in self._named):
            return named, args, kwargs
        parameters = self._outer.parameters
        shared = [name for name in self._named if name in self._inner.parameters]
        first = [given[name] for name in shared if parameters[name].kind in _POSITIONAL]
        others = {name: given[name] for name in shared if parameters[name].kind not in _POSITIONAL}
        for name, each in parameters.items():
            if each.kind is Parameter.VAR_POSITIONAL:
                first.extend(given[name])
            elif each.kind is Parameter.VAR_KEYWORD:
                others.update(given[name])
        return named, first, others

    def _with_added(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        open_ones = [
            each for name, each in self._inner.parameters.items() if each.kind in _POSITIONAL and name not in kwargs
        ]
        if not self.chosen:
            # All make the key: name them from the left, as for arguments that are added by name.
            if len(args) > len(open_ones):
                raise self._does_not_fit()
            return {**kwargs, **{each.name: value for each, value in zip(open_ones, args, strict=False)}}
        found: dict[object, dict[str, Any]] = {}
        others = [each.name for each in open_ones if each.name not in self.chosen]
        numbers = range(min(len(others), MOST_ADDED) + 1)
        for added in chain.from_iterable(combinations(others, number) for number in numbers):
            left = [each for each in open_ones if each.name not in added]
            rest = left[len(args) :]
            if len(args) > len(left) or any(each.default is Parameter.empty for each in rest):
                continue
            given = {each.name: value for each, value in zip(left, args, strict=False)}
            given.update({each.name: each.default for each in rest})
            chosen = {name: given[name] for name in self.chosen if name in given}
            # By identity, for values may not be comparable.
            found[tuple((name, id(value)) for name, value in chosen.items())] = chosen
        if not found:
            raise self._does_not_fit()
        if len(found) > 1:
            raise InvalidKey(
                f"its decorator adds arguments, and this call doesn't tell which are {', '.join(sorted(self.chosen))}: "
                "pass them by keyword, or use lock_key=callable, which is called with what the caller gives"
            )
        parameters = self._inner.parameters.items()
        by_keyword = {name: each.default for name, each in parameters if each.kind is Parameter.KEYWORD_ONLY}
        defaults = {name: default for name, default in by_keyword.items() if default is not Parameter.empty}
        [chosen] = found.values()
        return {**defaults, **kwargs, **chosen}

    def _does_not_fit(self) -> InvalidKey:
        return InvalidKey(
            "the call doesn't fit the arguments of the function inside its decorator "
            f"({', '.join(self._inner.parameters)}): use lock_key=callable, which is called with what the caller gives"
        )
