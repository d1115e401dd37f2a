from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from celery_etcdlock.core.settings import SETTING_NAMES, SETTINGS, Settings
from celery_etcdlock.errors import InvalidSetting

POLICIES = "'skip', 'raise', 'retry', 'wait', 'join' or 'replace'"
PASSWORD = "hunter2-s3cret"


def channel() -> object:
    return object()


def settings(**mapping: Any) -> Settings:
    return Settings.from_mapping({f"etcdlock_{name}": value for name, value in mapping.items()})


def refused(**mapping: Any) -> str:
    with pytest.raises(InvalidSetting) as caught:
        settings(**mapping)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def test_defaults() -> None:
    assert settings() == Settings(
        endpoints=("127.0.0.1:2379",),
        username=None,
        password=None,
        ca_cert=None,
        client_cert=None,
        client_key=None,
        prefix="/celery-etcdlock/default/",
        ttl=30,
        timeout=5.0,
        on_conflict="skip",
        on_unavailable="retry",
        hash_key=None,
        scope=None,
        channel=None,
        listeners=None,
        dedup=None,
        gate=True,
        gate_limit=1000,
        done_ttl=600.0,
        beat_scheduler="celery.beat:PersistentScheduler",
        beat_name=None,
        beat_ttl=None,
        beat_delivery="at_least_once",
        beat_catch_up=None,
    )


def test_table_and_dataclass_name_the_same_settings() -> None:
    assert [setting.name for setting in SETTINGS] == ["etcdlock_" + field.name for field in fields(Settings)]
    assert all(setting.name.startswith("etcdlock_") and setting.doc for setting in SETTINGS)


def test_none_is_the_default_and_other_keys_are_passed_over() -> None:
    mapping: dict[Any, Any] = dict.fromkeys(SETTING_NAMES)
    mapping |= {"broker_url": "redis://", "ETCDLOCK_TTL": 3, 5: 6}
    assert Settings.from_mapping(mapping) == settings()


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        settings().ttl = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "endpoints"),
    [
        ("etcd:2379", ("etcd:2379",)),
        ("a:1, https://b:2", ("a:1", "https://b:2")),
        (["a:1", " b:2 "], ("a:1", "b:2")),
        (("[::1]:2379",), ("[::1]:2379",)),
        ("memory://", ("memory://",)),
    ],
)
def test_endpoints(value: object, endpoints: tuple[str, ...]) -> None:
    assert settings(endpoints=value).endpoints == endpoints


def test_endpoints_of_the_environment_come_after_the_setting() -> None:
    environ = {"ETCDLOCK_ENDPOINTS": "a:1,b:2"}
    assert Settings.from_mapping({}, environ).endpoints == ("a:1", "b:2")
    assert Settings.from_mapping({"etcdlock_endpoints": None}, environ).endpoints == ("a:1", "b:2")
    assert Settings.from_mapping({"etcdlock_endpoints": "c:3"}, environ).endpoints == ("c:3",)
    assert Settings.from_mapping({}, {"ETCDLOCK_ENDPOINTS": ""}).endpoints == ("127.0.0.1:2379",)
    with pytest.raises(InvalidSetting) as caught:
        Settings.from_mapping({}, {"ETCDLOCK_ENDPOINTS": "a:1,,b:2"})
    assert str(caught.value) == (
        "the environment variable ETCDLOCK_ENDPOINTS (for etcdlock_endpoints) has an endpoint (number 2) "
        "that is empty: take out the extra comma or entry"
    )


@pytest.mark.parametrize(
    ("app_name", "prefix"),
    [
        ("", "/celery-etcdlock/default/"),
        ("shop", "/celery-etcdlock/shop/"),
        ("shop/eu prod~é", "/celery-etcdlock/shop%2Feu%20prod%7E%C3%A9/"),
    ],
)
def test_prefix_from_the_app_s_name(app_name: str, prefix: str) -> None:
    assert Settings.from_mapping({}, app_name=app_name).prefix == prefix


def test_prefix_is_bounded_and_the_explicit_one_wins() -> None:
    assert len(Settings.from_mapping({}, app_name="é" * 10_000).prefix) < 250
    assert Settings.from_mapping({"etcdlock_prefix": "/a/b/"}, app_name="shop").prefix == "/a/b/"


@pytest.mark.parametrize(
    ("mapping", "field", "stored"),
    [
        ({"username": "u", "password": PASSWORD}, "password", PASSWORD),
        ({"ca_cert": Path("/etc/ca.pem")}, "ca_cert", "/etc/ca.pem"),
        ({"client_cert": "c.pem", "client_key": "k.pem"}, "client_key", "k.pem"),
        ({"ttl": 6.0}, "ttl", 6),
        ({"ttl": 2, "timeout": 1.5}, "timeout", 1.5),
        ({"on_conflict": "retry"}, "on_conflict", "retry"),
        ({"on_unavailable": "run"}, "on_unavailable", "run"),
        ({"hash_key": "k" * 16}, "hash_key", b"k" * 16),
        ({"hash_key": b"\xff" * 16}, "hash_key", b"\xff" * 16),
        ({"channel": channel}, "channel", channel),
        ({"dedup": ""}, "dedup", ()),
        ({"dedup": []}, "dedup", ()),
    ],
)
def test_accepted(mapping: dict[str, Any], field: str, stored: object) -> None:
    assert getattr(settings(**mapping), field) == stored


@pytest.mark.parametrize(
    ("given", "ttl", "timeout"),
    [
        ({}, 30, 5),
        ({"ttl": 60}, 60, 5),
        ({"ttl": 5}, 5, 2.5),
        ({"ttl": 2}, 2, 1),
        ({"ttl": 2, "beat_ttl": 30}, 2, 1),
        ({"beat_ttl": 3}, 30, 1.5),
        ({"timeout": 15}, 30, 15),
        ({"timeout": 20.2}, 41, 20.2),
        ({"ttl": 6, "timeout": 5}, 6, 5),
    ],
)
def test_a_default_gives_way_to_what_is_set(given: dict[str, Any], ttl: int, timeout: float) -> None:
    made = settings(**given)
    assert (made.ttl, made.timeout) == (ttl, timeout)


def test_a_time_out_that_was_set_is_less_than_the_ttl_that_was_set() -> None:
    with pytest.raises(InvalidSetting) as caught:
        settings(ttl=5, timeout=5)
    assert str(caught.value) == (
        "etcdlock_timeout (5 s) must be less than etcdlock_ttl (5 s): lower etcdlock_timeout or raise etcdlock_ttl"
    )
    with pytest.raises(InvalidSetting, match=r"etcdlock_timeout \(4 s\) must be less than etcdlock_beat_ttl \(3 s\)"):
        settings(timeout=4, beat_ttl=3)


LIST = "etcdlock_endpoints must be a list of endpoints or one comma-separated str, not "
EMPTY = "etcdlock_endpoints is empty: name at least one endpoint, like '127.0.0.1:2379', or leave it out"
REDIS = "etcdlock_endpoints has a Redis beside other endpoints: locks are in one Redis, or in an etcd"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("endpoints", 5, LIST + "an int"),
        ("endpoints", ["a:1", 5], LIST + "a list"),
        ("endpoints", b"a:1", LIST + "a bytes"),
        ("endpoints", "", EMPTY),
        ("endpoints", " , ", EMPTY),
        ("endpoints", [], EMPTY),
        ("endpoints", ["a:1", ""], "etcdlock_endpoints has an endpoint (number 2) that is empty: "
         "take out the extra comma or entry"),
        ("endpoints", "redis://localhost,127.0.0.1:2379", REDIS),
        ("endpoints", ["rediss://one", "rediss://two"], REDIS),
        ("endpoints", f"a:1,http://user:{PASSWORD}@b:2", "etcdlock_endpoints has an endpoint (number 2) with "
         "credentials in it: use etcdlock_username and etcdlock_password, which Celery masks"),
        ("endpoints", "a:1 b:2", "etcdlock_endpoints has an endpoint (number 1) with a space or control character "
         "in it: separate endpoints by commas"),
        ("endpoints", "a:1\0", "etcdlock_endpoints has an endpoint (number 1) with a space or control character "
         "in it: separate endpoints by commas"),
        ("endpoints", "memory://,a:1", "etcdlock_endpoints has memory:// beside other endpoints: "
         "it is a store of its own, use it alone"),
        ("username", 5, "etcdlock_username must be a non-empty str, not an int"),
        ("username", "", "etcdlock_username must be a non-empty str, not an empty str"),
        ("username", "u", "etcdlock_username is set without etcdlock_password: set both or neither"),
        ("password", PASSWORD, "etcdlock_password is set without etcdlock_username: set both or neither"),
        ("password", PASSWORD.encode(), "etcdlock_password must be a non-empty str, not a bytes"),
        ("ca_cert", True, "etcdlock_ca_cert must be the path of a PEM file, not a bool"),
        ("ca_cert", "", "etcdlock_ca_cert must be the path of a PEM file, not an empty str"),
        ("client_cert", "c", "etcdlock_client_cert is set without etcdlock_client_key: set both or neither"),
        ("client_key", "k", "etcdlock_client_key is set without etcdlock_client_cert: set both or neither"),
        ("prefix", "a/", "etcdlock_prefix must be a str that begins and ends with '/', not 'a/'"),
        ("prefix", "/a", "etcdlock_prefix must be a str that begins and ends with '/', not '/a'"),
        ("prefix", "", "etcdlock_prefix must be a str that begins and ends with '/', not ''"),
        ("prefix", 5, "etcdlock_prefix must be a str that begins and ends with '/', not 5"),
        ("prefix", "/a b/", "etcdlock_prefix must not hold spaces or control characters: '/a b/'"),
        ("prefix", "/\0/", "etcdlock_prefix must not hold spaces or control characters: '/\\x00/'"),
        ("prefix", "/\ud800/", "etcdlock_prefix must not hold spaces or control characters: '/\\ud800/'"),
        ("prefix", "/" + "a" * 511 + "/", "etcdlock_prefix must be at most 512 bytes long"),
        ("ttl", 1, "etcdlock_ttl must be at least 2 seconds, etcd's least, not 1"),
        ("ttl", "30", "etcdlock_ttl must be a whole number of seconds (etcd's leases are), not '30'"),
        ("ttl", True, "etcdlock_ttl must be a whole number of seconds (etcd's leases are), not True"),
        ("ttl", 2.5, "etcdlock_ttl must be a whole number of seconds (etcd's leases are), not 2.5"),
        ("timeout", 0, "etcdlock_timeout must be a finite number of seconds above 0, not 0"),
        ("timeout", math.inf, "etcdlock_timeout must be a finite number of seconds above 0, not inf"),
        ("timeout", False, "etcdlock_timeout must be a number of seconds, not False"),
        ("on_conflict", {}, f"etcdlock_on_conflict must be {POLICIES}, not a dict"),
        ("on_conflict", "drop", f"etcdlock_on_conflict must be {POLICIES}, not 'drop'"),
        ("on_unavailable", "rase", "etcdlock_on_unavailable must be 'retry', 'raise' or 'run', not 'rase' "
         "(did you mean 'raise'?)"),
        ("on_unavailable", 1, "etcdlock_on_unavailable must be 'retry', 'raise' or 'run', not 1"),
        ("hash_key", "s3cret", "etcdlock_hash_key must be at least 16 bytes long, it has 6"),
        ("hash_key", 12345678901234567, "etcdlock_hash_key must be a str or bytes, not an int"),
        ("hash_key", "\ud800" * 16, "etcdlock_hash_key must be a str that UTF-8 can encode"),
        ("channel", "etcd:2379", "etcdlock_channel must be a callable that returns a grpc channel or an etcd3 client, "
         "not a str: each process needs a channel of its own"),
        (
            "dedup",
            "while_executing",
            "etcdlock_dedup must be 'task_id' or a dict of task name patterns, not 'while_executing'",
        ),
        ("dedup", True, "etcdlock_dedup must be 'task_id' or a dict of task name patterns, not True"),
    ],
)  # fmt: skip
def test_refused(name: str, value: object, message: str) -> None:
    assert refused(**{name: value}) == message
    assert PASSWORD not in message


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"username": "u", "password": PASSWORD}, "etcdlock_username"),
        ({"ca_cert": "ca.pem"}, "etcdlock_ca_cert"),
        ({"client_cert": "c", "client_key": "k"}, "etcdlock_client_cert"),
    ],
)
def test_a_channel_brings_its_own_credentials(others: dict[str, Any], named: str) -> None:
    assert refused(channel=channel, **others) == (
        f"etcdlock_channel and {named} are both set: the channel brings its own credentials, leave one out"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("etcdlock_endpoint", " (did you mean 'etcdlock_endpoints'?)"),
        ("etcdlock_time_out", " (did you mean 'etcdlock_timeout'?)"),
        ("etcdlock_zzz", ""),
        ("etcdlock_", ""),
    ],
)
def test_unknown_settings(name: str, hint: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        Settings.from_mapping({name: PASSWORD})
    assert str(caught.value) == (
        f"unknown setting {name!r}{hint}; celery-etcdlock's settings are {', '.join(SETTING_NAMES)}"
    )


def test_repr_shows_no_secret() -> None:
    text = repr(settings(username="user", password=PASSWORD, hash_key="s3cret-hash-key-16"))
    assert "user" in text
    assert PASSWORD not in text
    assert "s3cret-hash" not in text
