"""Reads the ``etcdlock_*`` settings out of a Celery app's configuration."""

from __future__ import annotations

import getpass
import os
import socket
from functools import cache
from hashlib import sha256
from typing import Any

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.utils.imports import symbol_by_name

from celery_etcdlock.core.settings import SETTING_NAMES, Settings
from celery_etcdlock.errors import InvalidSetting


def settings_of(app: Celery) -> Settings:
    """The app's settings, checked. Raises ``ImproperlyConfigured``, which names the setting and the remedy."""
    namespace = (getattr(app, "namespace", None) or "").upper()
    found: dict[str, Any] = {}
    for key in list(app.conf):
        if not isinstance(key, str) or "etcdlock_" not in key.lower():
            continue
        name = key.lower()
        if namespace and name.startswith(f"{namespace.lower()}_"):
            name = name[len(namespace) + 1 :]
        elif key.startswith("ETCDLOCK_"):
            right = f"{namespace}_{key}" if namespace else key.lower()
            raise ImproperlyConfigured(f"Celery doesn't read the setting {key}: write {right}")
        if name.startswith("etcdlock_"):
            found[name] = app.conf.get(name) if name in SETTING_NAMES else None
    try:
        return Settings.from_mapping(found, os.environ, app.main or "")
    except InvalidSetting as error:
        raise ImproperlyConfigured(str(error)) from None


def imported(setting: str, value: Any, remedy: str) -> Any:
    """What a setting names by its path; anything but a path is itself. Raises ``InvalidSetting``."""
    try:
        return symbol_by_name(value) if isinstance(value, str) else value
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidSetting(f"{setting}: {value!r} can't be imported ({error}): {remedy}") from None


def broker_fingerprint(app: Celery) -> str:
    """A short digest of the broker's host and virtual host: tells two deployments under one prefix apart."""
    connection = app.connection_for_write()
    where = f"{connection.transport_cls}|{connection.hostname}|{connection.port}|{connection.virtual_host}"
    return sha256(where.encode()).hexdigest()[:12]


@cache
def host_name() -> str:
    return socket.gethostname()


def user_name() -> str:
    """Who runs this process, for people."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"
