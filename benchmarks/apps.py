"""The Celery plug-ins that are measured side by side, each an app in an environment of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.environments import python_environment

__all__ = ["APPS", "COOKBOOK", "LOCKED", "ONCE", "PLAIN", "SINGLETON", "App"]

#: The same versions as ours, so that only the plug-in differs.
CELERY = ("celery[redis]", "gevent")


@dataclass(frozen=True)
class App:
    """``module`` of ``worker_apps``; ``python`` installs what is missing, and raises ``NotInstalled``."""

    module: str
    label: str
    python: Callable[[], str]


def _environment(name: str, package: str, imports: str) -> Callable[[], str]:
    return lambda: python_environment(name, [package, *CELERY], imports=imports, pinned_as_ours=True)


PLAIN = App("plain", "no lock", lambda: sys.executable)
LOCKED = App("locked", "celery-etcdlock", lambda: sys.executable)
SINGLETON = App(
    "singleton",
    "celery-singleton",
    _environment("celery-singleton", "celery-singleton==0.3.1", "celery_singleton"),
)
ONCE = App("once", "celery-once", _environment("celery-once", "celery-once==3.0.1", "celery_once"))
COOKBOOK = App("cookbook", "cookbook cache lock", _environment("cookbook", "Django==5.2.19", "django.core.cache"))
APPS = (LOCKED, SINGLETON, ONCE, COOKBOOK)
