"""What runs beside a call's arguments (a tenant, a database) as a part of all locks' names: ``etcdlock_scope``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from celery.utils.imports import symbol_by_name

from celery_etcdlock.core.lock_names import LockNames
from celery_etcdlock.errors import InvalidKey, InvalidSetting


def find_scope(setting: str | Callable[[Mapping[str, Any]], object]) -> Callable[[Mapping[str, Any]], object]:
    """The callable that the setting names. Raises ``InvalidSetting``."""
    try:
        found: Any = symbol_by_name(setting) if isinstance(setting, str) else setting
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidSetting(
            f"etcdlock_scope: {setting!r} can't be imported ({error}): write the path of a function, "
            "package.module:function"
        ) from None
    if not callable(found):
        raise InvalidSetting(f"etcdlock_scope: {setting!r} is not a function of a message's headers")
    scope: Callable[[Mapping[str, Any]], object] = found
    return scope


def scoped(
    setting: str | Callable[[Mapping[str, Any]], object], names: tuple[str, ...], headers: Mapping[str, Any]
) -> tuple[str, ...]:
    """``names`` in the scope of a call with these headers. Raises ``InvalidKey``, ``InvalidSetting``."""
    function = find_scope(setting)
    shown = getattr(function, "__qualname__", function)
    try:
        scope = function(headers)
    except Exception as error:
        raise InvalidKey(
            f"etcdlock_scope: {shown} raised {type(error).__name__}; it is called with a message's headers and must "
            "return a str, or None for no scope"
        ) from error
    if scope is None:
        return names
    if not isinstance(scope, str) or not scope:
        raise InvalidKey(f"etcdlock_scope: {shown} returned {scope!r}: it must return a non-empty str, or None")
    # Without a colon of its own, so that the first one ends it.
    prefix = quote(scope, safe=" ._=,@-/", errors="surrogatepass")
    return LockNames.of((f"{prefix}:{name}" for name in names), getattr(names, "about", None))
