"""Checks of a single value, of a task's option or a setting.

A check takes the value and returns it in the form that the rest of the package uses. It raises ``ValueError``
with the end of a sentence ("must be ..."); whoever calls it puts the name of the option or setting in front. Of what
may be a credential it shows the type alone.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# etcd raises a lease's TTL to its own least, one and a half election timeouts, which is 2 s by default, and
# refuses any above the greatest.
LEAST_TTL_SECONDS = 2
GREATEST_TTL_SECONDS = 9_000_000_000

LEAST_HASH_KEY_BYTES = 16
MAX_PREFIX_BYTES = 512
MEMORY_ENDPOINT = "memory://"
REDIS_SCHEMES = ("redis://", "rediss://")


def shown(value: object) -> str:
    """The value for a message: plain values as they are (shortened), anything else by its type."""
    if value is None or type(value) in (bool, int, float, str):
        try:
            written = repr(value)
        except ValueError:  # an int of more digits than Python is willing to print
            return "a very large int"
        return written if len(written) <= 80 else written[:77] + "..."
    return kind_of(value)


def kind_of(value: object) -> str:
    """The value's type with its article, where the value itself may be a secret: ``a list``, ``an int``."""
    if isinstance(value, str) and not value:
        return "an empty str"
    name = type(value).__qualname__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """`` (did you mean 'x'?)``, or nothing when no known name is close.

    A ``prefix`` that all have isn't compared: it would make any two of them close.
    """
    candidates = sorted(word.removeprefix(prefix) for word in known)
    close = difflib.get_close_matches(name.removeprefix(prefix), candidates, n=1, cutoff=0.6)
    return f" (did you mean {prefix + close[0]!r}?)" if close else ""


def no_such_argument(name: str, known: Sequence[str]) -> str:
    """What to say of a name in ``unique_on`` or ``lock_key``."""
    has = ", ".join(known) if known else "no arguments at all"
    return f"names {name!r}, which is no argument of the task{did_you_mean(name, known)}: it has {has}"


def choice(*allowed: str) -> Callable[[Any], str]:
    """A check for one of ``allowed``."""

    def check(value: Any) -> str:
        word = str.__str__(value) if isinstance(value, str) else ""  # a str Enum's value, not its repr
        if word in allowed:
            return word
        raise ValueError(f"must be {_listed(allowed)}, not {shown(value)}{did_you_mean(word, allowed)}")

    return check


def whole_seconds(value: Any) -> int:
    """A TTL. etcd's leases are counted in whole seconds, so 2.5 is refused and 30.0 is 30."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        raise ValueError(f"must be a whole number of seconds (etcd's leases are), not {shown(value)}")
    if value < LEAST_TTL_SECONDS:
        raise ValueError(f"must be at least {LEAST_TTL_SECONDS} seconds, etcd's least, not {shown(value)}")
    if value > GREATEST_TTL_SECONDS:
        raise ValueError(f"must be at most {GREATEST_TTL_SECONDS} seconds, etcd's greatest, not {shown(value)}")
    return int(value)


def seconds(value: Any) -> float:
    """A time limit: a finite number of seconds above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"must be a number of seconds, not {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"must be a finite number of seconds above 0, not {shown(value)}")
    return number


def flag(value: Any) -> bool:
    """A switch."""
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False, not {shown(value)}")
    return value


def whole_number(least: int, of: str = "") -> Callable[[Any], int]:
    """A check for a number of things, of which there are ``least`` at least."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"must be a whole number{of}, at least {least}, not {shown(value)}")
        return int(value)

    return check


def seconds_or_none(value: Any) -> float:
    """A finite number of seconds, 0 for none."""
    return 0.0 if value == 0 and not isinstance(value, bool) else seconds(value)


def endpoints(value: Any) -> tuple[str, ...]:
    # No entry is printed: it may hold a password.
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"must be a list of endpoints or one comma-separated str, not {kind_of(value)}")
    found = tuple(str.__str__(entry).strip() for entry in entries)
    if not any(found):
        raise ValueError("is empty: name at least one endpoint, like '127.0.0.1:2379', or leave it out")
    for number, endpoint in enumerate(found, 1):
        where = f"has an endpoint (number {number})"
        if not endpoint:
            raise ValueError(f"{where} that is empty: take out the extra comma or entry")
        if "@" in endpoint:
            raise ValueError(
                f"{where} with credentials in it: use etcdlock_username and etcdlock_password, which Celery masks"
            )
        if any(character.isspace() or not character.isprintable() for character in endpoint):
            raise ValueError(f"{where} with a space or control character in it: separate endpoints by commas")
    if MEMORY_ENDPOINT in found and len(found) > 1:
        raise ValueError(f"has {MEMORY_ENDPOINT} beside other endpoints: it is a store of its own, use it alone")
    if len(found) > 1 and any(endpoint.lower().startswith(REDIS_SCHEMES) for endpoint in found):
        raise ValueError("has a Redis beside other endpoints: locks are in one Redis, or in an etcd")
    return found


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a non-empty str, not {kind_of(value)}")
    return str.__str__(value)


def path(value: Any) -> str:
    given = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(given, str) or not given:
        raise ValueError(f"must be the path of a PEM file, not {kind_of(value)}")
    return given


def prefix(value: Any) -> str:
    if not isinstance(value, str) or not (value.startswith("/") and value.endswith("/")):
        raise ValueError(f"must be a str that begins and ends with '/', not {shown(value)}")
    if not value.isprintable() or " " in value:
        raise ValueError(f"must not hold spaces or control characters: {shown(value)}")
    if len(value.encode()) > MAX_PREFIX_BYTES:
        raise ValueError(f"must be at most {MAX_PREFIX_BYTES} bytes long")
    return str.__str__(value)


def scheduler(value: Any) -> str | type:
    """A class, or where to import it from: what it is, is found out when it is imported."""
    if isinstance(value, type):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be a scheduler class or its import path ('package.module:Class'), not {shown(value)}")
    return value.strip()


def hash_key(value: Any) -> bytes:
    if not isinstance(value, (str, bytes)):
        raise ValueError(f"must be a str or bytes, not {kind_of(value)}")
    try:
        key = value.encode() if isinstance(value, str) else bytes(value)
    except UnicodeEncodeError:
        raise ValueError("must be a str that UTF-8 can encode") from None
    if len(key) < LEAST_HASH_KEY_BYTES:
        raise ValueError(f"must be at least {LEAST_HASH_KEY_BYTES} bytes long, it has {len(key)}")
    return key


def channel(value: object) -> Callable[[], Any]:
    if not callable(value):
        raise ValueError(
            f"must be a callable that returns a grpc channel or an etcd3 client, not {kind_of(value)}: "
            "each process needs a channel of its own"
        )
    return value


def listeners(value: Any) -> tuple[str | Callable[..., Any], ...]:
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple)) or not all(
        isinstance(entry, str) or callable(entry) for entry in entries
    ):
        raise ValueError(
            "must be a list of 'prometheus', 'opentelemetry', functions that take an event, or their import paths, "
            f"not {kind_of(value)}"
        )
    return tuple(entry.strip() if isinstance(entry, str) else entry for entry in entries)


def scope(value: object) -> str | Callable[[Mapping[str, Any]], object]:
    if callable(value) or (isinstance(value, str) and value):
        return value
    raise ValueError(f"must be a function of a message's headers, or its import path, not {kind_of(value)}")


def _listed(words: Iterable[str]) -> str:
    *firsts, last = (repr(word) for word in words)
    return f"{', '.join(firsts)} or {last}" if firsts else last
