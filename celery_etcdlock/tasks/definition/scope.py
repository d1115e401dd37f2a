"""What runs beside a call's arguments (a tenant, a database) as a part of all locks' names: ``etcdlock_scope``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from celery_etcdlock.app.celery_settings import imported
from celery_etcdlock.core.lock_names import LockNames
from celery_etcdlock.errors import InvalidKey, InvalidSetting


def scoped(
    setting: str | Callable[[Mapping[str, Any]], object], names: tuple[str, ...], headers: Mapping[str, Any]
) -> tuple[str, ...]:
    """``names`` in the scope of a call with these headers. Raises ``InvalidKey``, ``InvalidSetting``."""
    function = imported("etcdlock_scope", setting, "write the path of a function, package.module:function")
    if not callable(function):
        raise InvalidSetting(f"etcdlock_scope: {setting!r} is not a function of a message's headers")
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
