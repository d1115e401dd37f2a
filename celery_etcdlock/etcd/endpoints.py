"""Where etcd is: parsing of ``etcdlock_endpoints``, and which endpoint to try next.

An endpoint that failed rests for a moment, longer with each failure in a row (to a ceiling, with jitter, so
that a fleet of workers doesn't knock in step). Resting is a preference, not a ban: when all endpoints rest,
the one that wakes first is next.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from celery_etcdlock.errors import InvalidSetting

DEFAULT_PORT = 2379
FIRST_REST_SECONDS = 0.05
LONGEST_REST_SECONDS = 1.0

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?\Z")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9_.-]+)?\Z")


@dataclass(frozen=True)
class Endpoint:
    """One client URL of etcd."""

    host: str
    port: int = DEFAULT_PORT
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_endpoints(value: str | Iterable[str], *, tls: bool = False) -> tuple[Endpoint, ...]:
    """The endpoints of a comma-separated string or a list of strings.

    ``tls`` says that a CA or client certificate is configured: endpoints without a scheme then use TLS.
    Raises ``InvalidSetting``, which never repeats a password.
    """
    if isinstance(value, str):
        texts: Sequence[str] = value.split(",")
    else:
        try:
            texts = list(value)
        except TypeError:
            raise _invalid(f"must be a string or a list of strings, not {type(value).__name__}") from None
    if not texts or texts == [""]:
        raise _invalid("is empty: name at least one endpoint, such as 127.0.0.1:2379")
    parsed = [_parse_one(text, tls) for text in texts]
    schemes = {scheme for scheme, _ in parsed if scheme}
    if len(schemes) > 1:
        raise _invalid("mixes http and https: use one of them for all endpoints")
    if tls and "http" in schemes:
        raise _invalid(
            "says http, but etcdlock_ca_cert or etcdlock_client_cert is set: use https, or remove the certificates"
        )
    use_tls = tls or "https" in schemes
    return tuple(dict.fromkeys(Endpoint(found.host, found.port, use_tls) for _, found in parsed))


def _parse_one(text: object, tls: bool) -> tuple[str, Endpoint]:
    if not isinstance(text, str):
        raise _invalid(f"must hold strings only, not {type(text).__name__}")
    text = text.strip()
    if not text:
        raise _invalid("holds an empty endpoint: remove the extra comma or the empty string")
    scheme, separator, rest = text.rpartition("://")
    if "@" in text:
        raise _invalid(
            "holds a user name or password: remove it and set etcdlock_username and etcdlock_password instead"
        )
    if separator and scheme.lower() not in ("http", "https"):
        raise _invalid(f"has {text!r}: the scheme must be http or https")
    if rest.endswith("/"):
        rest = rest[:-1]
    if any(mark in rest for mark in "/?#"):
        raise _invalid(f"has {text!r}: an endpoint is host:port, without path or query")
    host, port = _split_port(rest, text)
    return scheme.lower(), Endpoint(host, port, tls)


def _split_port(rest: str, text: str) -> tuple[str, int]:
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        if not bracket or not _IPV6.match(host) or (tail and not tail.startswith(":")):
            raise _invalid(f"has {text!r}: an IPv6 endpoint is written [::1]:2379")
        port_text = tail[1:] if tail else None
    elif rest.count(":") > 1:
        raise _invalid(f"has {text!r}: an IPv6 endpoint is written [::1]:2379")
    else:
        host, colon, after = rest.partition(":")
        port_text = after if colon else None
        if not _HOST.match(host):
            raise _invalid(f"has {text!r}: the host name isn't valid")
    if port_text is None:
        return host, DEFAULT_PORT
    if not (re.fullmatch(r"[0-9]{1,5}", port_text) and 0 < int(port_text) < 65536):
        raise _invalid(f"has {text!r}: the port must be a number from 1 to 65535")
    return host, int(port_text)


def _invalid(problem: str) -> InvalidSetting:
    return InvalidSetting(f"etcdlock_endpoints {problem}")


class EndpointHealth:
    """How an endpoint did lately. Plain attributes: a race between threads costs one needless attempt."""

    __slots__ = ("endpoint", "failures", "rests_until")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.failures = 0
        self.rests_until = 0.0

    def succeeded(self) -> None:
        self.failures = 0
        self.rests_until = 0.0

    def failed(self, now: float) -> None:
        rest = min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2.0 ** min(self.failures, 10))
        self.failures += 1
        self.rests_until = now + rest * random.uniform(0.5, 1.0)


def next_endpoint(healths: Sequence[EndpointHealth], now: float) -> EndpointHealth:
    """The first endpoint that doesn't rest, else the one that wakes first."""
    for health in healths:
        if health.rests_until <= now:
            return health
    return min(healths, key=lambda health: health.rests_until)
