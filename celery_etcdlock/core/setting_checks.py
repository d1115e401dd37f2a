"""The checks of single settings, beside those that they share with task options (``core.value_checks``).

They raise ``ValueError`` with the end of a sentence. Of what may be a credential it shows the type alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from celery_etcdlock.core.value_checks import kind_of, shown

LEAST_HASH_KEY_BYTES = 16
MAX_PREFIX_BYTES = 512
MEMORY_ENDPOINT = "memory://"
REDIS_SCHEMES = ("redis://", "rediss://")


def check_endpoints(value: Any) -> tuple[str, ...]:
    # No entry is printed: it may hold a password.
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"must be a list of endpoints or one comma-separated str, not {_kind_of_secret(value)}")
    endpoints = tuple(str.__str__(entry).strip() for entry in entries)
    if not any(endpoints):
        raise ValueError("is empty: name at least one endpoint, like '127.0.0.1:2379', or leave it out")
    for number, endpoint in enumerate(endpoints, 1):
        where = f"has an endpoint (number {number})"
        if not endpoint:
            raise ValueError(f"{where} that is empty: take out the extra comma or entry")
        if "@" in endpoint:
            raise ValueError(
                f"{where} with credentials in it: use etcdlock_username and etcdlock_password, which Celery masks"
            )
        if any(character.isspace() or not character.isprintable() for character in endpoint):
            raise ValueError(f"{where} with a space or control character in it: separate endpoints by commas")
    if MEMORY_ENDPOINT in endpoints and len(endpoints) > 1:
        raise ValueError(f"has {MEMORY_ENDPOINT} beside other endpoints: it is a store of its own, use it alone")
    if len(endpoints) > 1 and any(endpoint.lower().startswith(REDIS_SCHEMES) for endpoint in endpoints):
        raise ValueError("has a Redis beside other endpoints: locks are in one Redis, or in an etcd")
    return endpoints


def check_text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a non-empty str, not {_kind_of_secret(value)}")
    return str.__str__(value)


def check_path(value: Any) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path:
        raise ValueError(f"must be the path of a PEM file, not {_kind_of_secret(value)}")
    return path


def check_prefix(value: Any) -> str:
    if not isinstance(value, str) or not (value.startswith("/") and value.endswith("/")):
        raise ValueError(f"must be a str that begins and ends with '/', not {shown(value)}")
    if not value.isprintable() or " " in value:
        raise ValueError(f"must not hold spaces or control characters: {shown(value)}")
    if len(value.encode()) > MAX_PREFIX_BYTES:
        raise ValueError(f"must be at most {MAX_PREFIX_BYTES} bytes long")
    return str.__str__(value)


def check_scheduler(value: Any) -> str | type:
    """A class, or where to import it from: what it is, is found out when it is imported."""
    if isinstance(value, type):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be a scheduler class or its import path ('package.module:Class'), not {shown(value)}")
    return value.strip()


def check_hash_key(value: Any) -> bytes:
    if not isinstance(value, (str, bytes)):
        raise ValueError(f"must be a str or bytes, not {_kind_of_secret(value)}")
    try:
        key = value.encode() if isinstance(value, str) else bytes(value)
    except UnicodeEncodeError:
        raise ValueError("must be a str that UTF-8 can encode") from None
    if len(key) < LEAST_HASH_KEY_BYTES:
        raise ValueError(f"must be at least {LEAST_HASH_KEY_BYTES} bytes long, it has {len(key)}")
    return key


def check_channel(value: object) -> Callable[[], Any]:
    if not callable(value):
        raise ValueError(
            f"must be a callable that returns a grpc channel or an etcd3 client, not {_kind_of_secret(value)}: "
            "each process needs a channel of its own"
        )
    return value


def check_listeners(value: Any) -> tuple[str | Callable[..., Any], ...]:
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple)) or not all(
        isinstance(entry, str) or callable(entry) for entry in entries
    ):
        raise ValueError(
            "must be a list of 'prometheus', 'opentelemetry', functions that take an event, or their import paths, "
            f"not {_kind_of_secret(value)}"
        )
    return tuple(entry.strip() if isinstance(entry, str) else entry for entry in entries)


def check_scope(value: object) -> str | Callable[[Mapping[str, Any]], object]:
    if callable(value) or (isinstance(value, str) and value):
        return value
    raise ValueError(f"must be a function of a message's headers, or its import path, not {kind_of(value)}")


def _kind_of_secret(value: object) -> str:
    """A value's type alone, where the value may be a credential."""
    return "an empty str" if value == "" else kind_of(value)
