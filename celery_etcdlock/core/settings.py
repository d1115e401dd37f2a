"""The ``etcdlock_*`` settings of an app, checked and frozen.

`SETTINGS` is the only place where a setting's name, default, check and meaning are written. What needs two
settings at once is checked in `Settings.from_mapping`. Endpoints are only looked at here, so that a slip is
found at start; the client parses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from celery_etcdlock.core.dedup_rules import DedupRule, check_dedup
from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.core.policies import check_policy_name
from celery_etcdlock.core.setting_checks import (
    LEAST_HASH_KEY_BYTES,
    MEMORY_ENDPOINT,
    REDIS_SCHEMES,
    check_channel,
    check_endpoints,
    check_hash_key,
    check_listeners,
    check_path,
    check_prefix,
    check_scheduler,
    check_scope,
    check_text,
)
from celery_etcdlock.core.value_checks import (
    check_count,
    check_flag,
    check_whole_seconds,
    choice,
    did_you_mean,
    number_of_seconds,
)
from celery_etcdlock.errors import InvalidSetting

PREFIX_OF_NAMES = "etcdlock_"
ENDPOINTS_VARIABLE = "ETCDLOCK_ENDPOINTS"


@dataclass(frozen=True)
class Setting:
    """One setting: ``check`` returns the value as it is used, or raises ``ValueError`` ("must be ...").

    ``default`` is in the form in which a user would write it; a default of ``None`` is not checked.
    """

    name: str
    default: Any
    check: Callable[[Any], Any]
    doc: str

    @property
    def field(self) -> str:
        return self.name.removeprefix(PREFIX_OF_NAMES)


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "etcdlock_endpoints",
        "127.0.0.1:2379",
        check_endpoints,
        f"etcd's endpoints, a list or comma-separated; the variable `{ENDPOINTS_VARIABLE}` comes before the "
        "default; `memory://` for tests; `redis://` and `rediss://` for locks in a Redis",
    ),
    Setting("etcdlock_username", None, check_text, "etcd user, with `etcdlock_password`"),
    Setting("etcdlock_password", None, check_text, "its password"),
    Setting("etcdlock_ca_cert", None, check_path, "PEM file of the CA that signed etcd's certificate"),
    Setting("etcdlock_client_cert", None, check_path, "PEM file of our certificate, with `etcdlock_client_key`"),
    Setting("etcdlock_client_key", None, check_path, "PEM file of its private key"),
    Setting(
        "etcdlock_prefix",
        None,
        check_prefix,
        "what our keys in etcd begin with, from `/` to `/`; `None`: `/celery-etcdlock/{app name}/`",
    ),
    Setting("etcdlock_ttl", 30, check_whole_seconds, "whole seconds until a dead holder's lock is free, at least 2"),
    Setting(
        "etcdlock_timeout",
        5,
        number_of_seconds,
        "seconds that one call to etcd may take; less than `etcdlock_ttl`, and by default at most half of it",
    ),
    Setting("etcdlock_on_conflict", "skip", check_policy_name, "what a loser gets, for tasks that don't say"),
    Setting(
        "etcdlock_on_unavailable",
        "retry",
        choice("retry", "raise", "run"),
        "what a task does when etcd is away: `retry` comes back later, `raise` fails, `run` runs without a lock",
    ),
    Setting(
        "etcdlock_hash_key",
        None,
        check_hash_key,
        f"secret of at least {LEAST_HASH_KEY_BYTES} bytes that keys the digests in lock names; the same everywhere",
    ),
    Setting(
        "etcdlock_scope",
        None,
        check_scope,
        "function of a message's headers, or its import path: the str that it returns (a tenant) goes in front of all "
        "locks' names",
    ),
    Setting(
        "etcdlock_channel",
        None,
        check_channel,
        "callable that returns a grpc channel or python-etcd3 client to use instead of our own connection",
    ),
    Setting(
        "etcdlock_listeners",
        None,
        check_listeners,
        "who else receives lock events: `prometheus`, `opentelemetry`, functions or their import paths",
    ),
    Setting(
        "etcdlock_dedup",
        None,
        check_dedup,
        "locks for tasks that know nothing of them: `task_id`, or a dict from name patterns to options",
    ),
    Setting(
        "etcdlock_gate",
        True,
        check_flag,
        "whether messages that came back for a lock wait in the worker's MainProcess, without a slot of its pool",
    ),
    Setting("etcdlock_gate_limit", 1000, check_count, "how many messages may wait there at once"),
    Setting(
        "etcdlock_done_ttl",
        600,
        number_of_seconds,
        "seconds for which it is known that a message has run, where it may be delivered again",
    ),
    Setting(
        "etcdlock_beat_scheduler",
        "celery.beat:PersistentScheduler",
        check_scheduler,
        "which scheduler `celery_etcdlock.beat:EtcdScheduler` puts to work: a class or its import path",
    ),
    Setting(
        "etcdlock_beat_name",
        None,
        check_text,
        "which beats stand for one another: those of one name; `None`: the app's name",
    ),
    Setting(
        "etcdlock_beat_ttl",
        None,
        check_whole_seconds,
        "whole seconds until a dead beat's work is taken over; `None`: `etcdlock_ttl`",
    ),
    Setting(
        "etcdlock_beat_delivery",
        "at_least_once",
        choice("at_least_once", "at_most_once"),
        "what becomes of a tick whose beat dies while it sends it: `at_least_once` sends it again under the same task "
        "id, `at_most_once` lets it go",
    ),
    Setting(
        "etcdlock_beat_catch_up",
        None,
        number_of_seconds,
        "how many seconds late a tick may be sent; `None`: as late as it comes, as Celery does",
    ),
)
SETTING_NAMES: tuple[str, ...] = tuple(setting.name for setting in SETTINGS)


@dataclass(frozen=True)
class Settings:
    """An app's settings, each named as in the configuration less ``etcdlock_``.

    ``ttl`` and ``timeout`` are in seconds. Defaults and meanings are in `SETTINGS`.
    """

    endpoints: tuple[str, ...]
    username: str | None
    password: str | None = field(repr=False)
    ca_cert: str | None
    client_cert: str | None
    client_key: str | None
    prefix: str
    ttl: int
    timeout: float
    on_conflict: str
    on_unavailable: str
    hash_key: bytes | None = field(repr=False)
    scope: str | Callable[[Mapping[str, Any]], object] | None
    channel: Callable[[], Any] | None
    listeners: tuple[str | Callable[..., Any], ...] | None
    dedup: tuple[DedupRule, ...] | None
    gate: bool
    gate_limit: int
    done_ttl: float
    beat_scheduler: str | type
    beat_name: str | None
    beat_ttl: int | None
    beat_delivery: str
    beat_catch_up: float | None

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], environ: Mapping[str, str] | None = None, app_name: str = ""
    ) -> Settings:
        """From the ``etcdlock_*`` keys of a configuration; other keys are passed over, ``None`` is the default.

        ``environ`` is where ``ETCDLOCK_ENDPOINTS`` is looked up, and ``app_name`` makes the default prefix.
        Raises `InvalidSetting`, which names the setting and never shows a credential.
        """
        _refuse_unknown(mapping)
        values: dict[str, Any] = {}
        for setting in SETTINGS:
            value, source = mapping.get(setting.name), setting.name
            if value is None:
                value = setting.default
                if setting.name == "etcdlock_endpoints" and environ and environ.get(ENDPOINTS_VARIABLE):
                    value = environ[ENDPOINTS_VARIABLE]
                    source = f"the environment variable {ENDPOINTS_VARIABLE} (for {setting.name})"
            try:
                values[setting.field] = None if value is None else setting.check(value)
            except ValueError as error:
                raise InvalidSetting(f"{source} {error}") from None
        if values["prefix"] is None:
            values["prefix"] = f"/celery-etcdlock/{escape_name(app_name or 'default')}/"
        _adapt_defaults(values, {setting.field for setting in SETTINGS if mapping.get(setting.name) is not None})
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
        return self.endpoints == (MEMORY_ENDPOINT,)

    @property
    def in_redis(self) -> bool:
        return self.endpoints[0].lower().startswith(REDIS_SCHEMES)

    @property
    def in_etcd(self) -> bool:
        """Whether the locks are in an etcd, whoever connects to it."""
        return not self.in_memory and not self.in_redis

    def at(self, endpoints: tuple[str, ...]) -> Settings:
        """The same at other endpoints, of a store without TLS or users."""
        no_login = dict.fromkeys(("username", "password", "ca_cert", "client_cert", "client_key", "channel"))
        return replace(self, endpoints=endpoints, **no_login)  # type: ignore[arg-type]

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
            for name in ("username", "password", "ca_cert", "client_cert", "client_key"):
                if getattr(self, name) is not None:
                    raise InvalidSetting(
                        f"etcdlock_channel and etcdlock_{name} are both set: the channel brings its own "
                        "credentials, leave one out"
                    )


def _adapt_defaults(values: dict[str, Any], given: set[str]) -> None:
    """A default gives way to what was set: the time-out to a short TTL, the TTL to a long time-out."""
    if "timeout" not in given:
        values["timeout"] = min(values["timeout"], values["ttl"] / 2, (values["beat_ttl"] or values["ttl"]) / 2)
    elif "ttl" not in given:
        values["ttl"] = max(values["ttl"], math.ceil(2 * values["timeout"]))


def _refuse_unknown(mapping: Mapping[str, Any]) -> None:
    for name in mapping:
        if isinstance(name, str) and name.startswith(PREFIX_OF_NAMES) and name not in SETTING_NAMES:
            raise InvalidSetting(
                f"unknown setting {name!r}{did_you_mean(name, SETTING_NAMES, prefix=PREFIX_OF_NAMES)}; "
                f"celery-etcdlock's settings are {', '.join(SETTING_NAMES)}"
            )
