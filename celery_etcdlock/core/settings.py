"""The ``etcdlock_*`` settings of an app, checked and frozen.

`Settings` is the only place where a setting's name, type, default, check and meaning are written.
`Settings.from_mapping` checks what needs two settings at once. Endpoints are only looked at here, so that a slip is
found at start; the client parses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from celery_etcdlock.core import value_checks as checks
from celery_etcdlock.core.declared import declared, declared_in
from celery_etcdlock.core.dedup_rules import DedupRule, check_dedup
from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.core.policies import POLICIES
from celery_etcdlock.errors import InvalidSetting

PREFIX_OF_NAMES = "etcdlock_"
ENDPOINTS_VARIABLE = "ETCDLOCK_ENDPOINTS"
#: Settings, without their prefix, that say how to log in to an etcd.
LOGIN = ("username", "password", "ca_cert", "client_cert", "client_key")


@dataclass(frozen=True)
class Settings:
    """An app's settings, each named as in the configuration less ``etcdlock_``. Times are in seconds."""

    endpoints: tuple[str, ...] = declared(
        "127.0.0.1:2379",
        checks.endpoints,
        f"etcd's endpoints, a list or comma-separated; the variable `{ENDPOINTS_VARIABLE}` comes before the "
        "default; `memory://` for tests; `redis://` and `rediss://` for locks in a Redis",
    )
    username: str | None = declared(None, checks.text, "etcd user, with `etcdlock_password`")
    password: str | None = declared(None, checks.text, "its password", secret=True)
    ca_cert: str | None = declared(None, checks.path, "PEM file of the CA that signed etcd's certificate")
    client_cert: str | None = declared(None, checks.path, "PEM file of our certificate, with `etcdlock_client_key`")
    client_key: str | None = declared(None, checks.path, "PEM file of its private key")
    prefix: str = declared(
        None, checks.prefix, "what our keys in etcd begin with, from `/` to `/`; `None`: `/celery-etcdlock/{app name}/`"
    )
    ttl: int = declared(30, checks.whole_seconds, "whole seconds until a dead holder's lock is free, at least 2")
    timeout: float = declared(
        5,
        checks.seconds,
        "seconds that one call to etcd may take; less than `etcdlock_ttl`, and by default at most half of it",
    )
    on_conflict: str = declared("skip", checks.choice(*POLICIES), "what a loser gets, for tasks that don't say")
    on_unavailable: str = declared(
        "retry",
        checks.choice("retry", "raise", "run"),
        "what a task does when etcd is away: `retry` comes back later, `raise` fails, `run` runs without a lock",
    )
    hash_key: bytes | None = declared(
        None,
        checks.hash_key,
        f"secret of at least {checks.LEAST_HASH_KEY_BYTES} bytes that keys the digests in lock names; the same "
        "everywhere",
        secret=True,
    )
    scope: str | Callable[[Mapping[str, Any]], object] | None = declared(
        None,
        checks.scope,
        "function of a message's headers, or its import path: the str that it returns (a tenant) goes in front of all "
        "locks' names",
    )
    channel: Callable[[], Any] | None = declared(
        None,
        checks.channel,
        "callable that returns a grpc channel or python-etcd3 client to use instead of our own connection",
    )
    listeners: tuple[str | Callable[..., Any], ...] | None = declared(
        None,
        checks.listeners,
        "who else receives lock events: `prometheus`, `opentelemetry`, functions or their import paths",
    )
    dedup: tuple[DedupRule, ...] | None = declared(
        None,
        check_dedup,
        "locks for tasks that know nothing of them: `task_id`, or a dict from name patterns to options",
    )
    gate: bool = declared(
        True,
        checks.flag,
        "whether messages that came back for a lock wait in the worker's MainProcess, without a slot of its pool",
    )
    gate_limit: int = declared(1000, checks.whole_number(0), "how many messages may wait there at once")
    done_ttl: float = declared(
        600,
        checks.seconds,
        "seconds for which it is known that a message has run, where it may be delivered again",
    )
    beat_scheduler: str | type = declared(
        "celery.beat:PersistentScheduler",
        checks.scheduler,
        "which scheduler `celery_etcdlock.beat:EtcdScheduler` puts to work: a class or its import path",
    )
    beat_name: str | None = declared(
        None, checks.text, "which beats stand for one another: those of one name; `None`: the app's name"
    )
    beat_ttl: int | None = declared(
        None, checks.whole_seconds, "whole seconds until a dead beat's work is taken over; `None`: `etcdlock_ttl`"
    )
    beat_delivery: str = declared(
        "at_least_once",
        checks.choice("at_least_once", "at_most_once"),
        "what becomes of a tick whose beat dies while it sends it: `at_least_once` sends it again under the same task "
        "id, `at_most_once` lets it go",
    )
    beat_catch_up: float | None = declared(
        None,
        checks.seconds,
        "how many seconds late a tick may be sent; `None`: as late as it comes, as Celery does",
    )

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], environ: Mapping[str, str] | None = None, app_name: str = ""
    ) -> Settings:
        """From the ``etcdlock_*`` keys of a configuration; other keys are passed over, ``None`` is the default.

        ``environ`` is where ``ETCDLOCK_ENDPOINTS`` is looked up, and ``app_name`` makes the default prefix.
        Raises `InvalidSetting`, which names the setting and never shows a credential.
        """
        for name in mapping:
            if isinstance(name, str) and name.startswith(PREFIX_OF_NAMES) and name not in SETTING_NAMES:
                raise InvalidSetting(
                    f"unknown setting {name!r}{checks.did_you_mean(name, SETTING_NAMES, prefix=PREFIX_OF_NAMES)}; "
                    f"celery-etcdlock's settings are {', '.join(SETTING_NAMES)}"
                )
        values: dict[str, Any] = {}
        for setting in SETTINGS:
            value, source = mapping.get(setting.name), setting.name
            if value is None:
                value = setting.default
                if setting.name == "etcdlock_endpoints" and environ and environ.get(ENDPOINTS_VARIABLE):
                    value = environ[ENDPOINTS_VARIABLE]
                    source = f"the environment variable {ENDPOINTS_VARIABLE} (for {setting.name})"
            try:
                values[setting.name.removeprefix(PREFIX_OF_NAMES)] = setting.checked(value)
            except ValueError as error:
                raise InvalidSetting(f"{source} {error}") from None
        if values["prefix"] is None:
            values["prefix"] = f"/celery-etcdlock/{escape_name(app_name or 'default')}/"
        _adapt_defaults(values, is_set=lambda name: mapping.get(PREFIX_OF_NAMES + name) is not None)
        settings = cls(**values)
        settings._check_together()
        return settings

    @property
    def where(self) -> str:
        """Where the locks are, for people, such as ``etcd at 127.0.0.1:2379``."""
        if self.in_memory:
            return "each process's own memory, which protects nothing across processes"
        if self.in_redis:
            return f"Redis at {self.endpoints[0]}"
        if self.channel is not None:
            return "etcd over etcdlock_channel"
        return f"etcd at {', '.join(self.endpoints)}"

    @property
    def in_memory(self) -> bool:
        return self.endpoints == (checks.MEMORY_ENDPOINT,)

    @property
    def in_redis(self) -> bool:
        return self.endpoints[0].lower().startswith(checks.REDIS_SCHEMES)

    @property
    def in_etcd(self) -> bool:
        """Whether the locks are in an etcd, whoever connects to it."""
        return not self.in_memory and not self.in_redis

    def at(self, endpoints: tuple[str, ...]) -> Settings:
        """The same at other endpoints, of a store without TLS or users."""
        return replace(self, endpoints=endpoints, **dict.fromkeys((*LOGIN, "channel")))  # type: ignore[arg-type]

    def _check_together(self) -> None:
        for pair in (("username", "password"), ("client_cert", "client_key")):
            for name, other in (pair, pair[::-1]):
                if getattr(self, name) is not None and getattr(self, other) is None:
                    raise InvalidSetting(f"etcdlock_{name} is set without etcdlock_{other}: set both or neither")
        for name, ttl in (("etcdlock_ttl", self.ttl), ("etcdlock_beat_ttl", self.beat_ttl)):
            if ttl is not None and self.timeout >= ttl:
                raise InvalidSetting(
                    f"etcdlock_timeout ({self.timeout:g} s) must be less than {name} ({ttl} s): "
                    f"lower etcdlock_timeout or raise {name}"
                )
        if self.channel is not None:
            for name in LOGIN:
                if getattr(self, name) is not None:
                    raise InvalidSetting(
                        f"etcdlock_channel and etcdlock_{name} are both set: the channel brings its own "
                        "credentials, leave one out"
                    )


SETTINGS = declared_in(Settings, PREFIX_OF_NAMES)
SETTING_NAMES = tuple(setting.name for setting in SETTINGS)


def _adapt_defaults(values: dict[str, Any], is_set: Callable[[str], bool]) -> None:
    """A default gives way to what was set: the time-out to a short TTL, the TTL to a long time-out."""
    if not is_set("timeout"):
        values["timeout"] = min(values["timeout"], values["ttl"] / 2, (values["beat_ttl"] or values["ttl"]) / 2)
    elif not is_set("ttl"):
        values["ttl"] = max(values["ttl"], math.ceil(2 * values["timeout"]))
