"""Where lock events go: one file for each place.

``signals`` and the log always get them. A worker with ``-E`` sends them as Celery events. The setting
``etcdlock_listeners`` adds ``"prometheus"``, ``"opentelemetry"``, and functions of your own.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable

from celery.utils.imports import symbol_by_name

from celery_etcdlock.core.events import Listener, LockEvent
from celery_etcdlock.errors import InvalidSetting
from celery_etcdlock.interruptions import interrupts

logger = logging.getLogger("celery_etcdlock")

#: Name -> module, whose ``listener()`` makes the listener, and the extra that installs what it needs.
NAMED_LISTENERS = {
    "prometheus": "celery_etcdlock.listeners.prometheus",
    "opentelemetry": "celery_etcdlock.listeners.opentelemetry",
}


class Listeners:
    """Several listeners as one. What one of them raises is logged, and reaches neither the others nor the caller.

    What interrupts the caller from outside while a listener runs is raised, after all have been called.
    """

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self._listeners = tuple(listeners)

    def __call__(self, event: LockEvent, /) -> None:
        interruption: Exception | None = None
        for listener in self._listeners:
            try:
                listener(event)
            except Exception as error:
                if interrupts(error):
                    interruption = interruption or error
                else:
                    logger.exception("celery-etcdlock: the listener %r failed on %r", listener, event)
        if interruption is not None:
            raise interruption


def find_listener(entry: str | Callable[[LockEvent], None]) -> Listener:
    """The listener that an entry of ``etcdlock_listeners`` names. Raises ``InvalidSetting``."""
    if not isinstance(entry, str):
        return entry
    module_name = NAMED_LISTENERS.get(entry)
    try:
        found = importlib.import_module(module_name).listener() if module_name is not None else symbol_by_name(entry)
    except (ImportError, AttributeError, ValueError) as error:
        remedy = (
            f"install it with: pip install 'celery-etcdlock[{entry}]'"
            if module_name is not None
            else f"use {', '.join(map(repr, NAMED_LISTENERS))}, or the path of a function (package.module:function)"
        )
        raise InvalidSetting(f"etcdlock_listeners: {entry!r} can't be imported ({error}); {remedy}") from None
    if not callable(found):
        raise InvalidSetting(f"etcdlock_listeners: {entry!r} is not a function that takes an event")
    listener: Listener = found
    return listener
