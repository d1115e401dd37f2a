"""Where etcd is: parsing of ``etcdlock_endpoints``, and which endpoint to try next.

An endpoint that failed rests for a moment, longer with each failure in a row (to a ceiling, with jitter, so
that a fleet of workers doesn't knock in step). Resting is a preference, not a ban: when all endpoints rest,
the one that wakes first is next.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from celery_etcdlock.core import value_checks
from celery_etcdlock.errors import InvalidSetting

DEFAULT_PORT = 2379
FIRST_REST_SECONDS = 0.05
LONGEST_REST_SECONDS = 1.0

_is_name = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?").fullmatch
_is_ipv6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9_.-]+)?").fullmatch
_host_and_port = re.compile(r"(?:\[(?P<ipv6>[^\]]*)\]|(?P<name>[^\[\]:]*))(?::(?P<port>[^:]*))?").fullmatch


@dataclass(frozen=True)
class Endpoint:
    """One client URL of etcd."""

    host: str
    port: int = DEFAULT_PORT
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_endpoints(value: str | Sequence[str], *, tls: bool = False) -> tuple[Endpoint, ...]:
    """The endpoints of a comma-separated string or a list of strings.

    ``tls`` says that a CA or client certificate is configured: endpoints without a scheme then use TLS.
    Raises ``InvalidSetting``, which never repeats a password.
    """
    try:
        texts = value_checks.endpoints(value)
    except ValueError as error:
        raise _invalid(str(error)) from None
    parsed = [_parse_one(text) for text in texts]
    schemes = {scheme for scheme, _, _ in parsed if scheme}
    if len(schemes) > 1:
        raise _invalid("mixes http and https: use one of them for all endpoints")
    if tls and "http" in schemes:
        raise _invalid(
            "says http, but etcdlock_ca_cert or etcdlock_client_cert is set: use https, or remove the certificates"
        )
    use_tls = tls or "https" in schemes
    return tuple(dict.fromkeys(Endpoint(host, port, use_tls) for _, host, port in parsed))


def _parse_one(text: str) -> tuple[str, str, int]:
    """Scheme, if it has one, host and port."""
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme.lower() not in ("http", "https"):
        raise _invalid(f"has {text!r}: the scheme must be http or https")
    rest = rest.removesuffix("/")
    if any(mark in rest for mark in "/?#"):
        raise _invalid(f"has {text!r}: an endpoint is host:port, without path or query")
    found = _host_and_port(rest)
    if found is None or (found["name"] is None and not _is_ipv6(found["ipv6"])):
        raise _invalid(f"has {text!r}: an IPv6 endpoint is written [::1]:2379")
    if found["name"] is not None and not _is_name(found["name"]):
        raise _invalid(f"has {text!r}: the host name isn't valid")
    port = str(DEFAULT_PORT) if found["port"] is None else found["port"]
    if not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise _invalid(f"has {text!r}: the port must be a number from 1 to 65535")
    return scheme.lower(), found["name"] or found["ipv6"], int(port)


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
