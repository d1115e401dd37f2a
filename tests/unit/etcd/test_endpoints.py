from __future__ import annotations

from typing import Any

import pytest

from celery_etcdlock.errors import InvalidSetting
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.endpoints import (
    LONGEST_REST_SECONDS,
    Endpoint,
    EndpointHealth,
    next_endpoint,
    parse_endpoints,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("127.0.0.1:2379", [("127.0.0.1", 2379, False)]),
        ("etcd", [("etcd", 2379, False)]),
        ("etcd.example.com.", [("etcd.example.com.", 2379, False)]),
        ("my_etcd:1", [("my_etcd", 1, False)]),
        ("http://h:1", [("h", 1, False)]),
        ("HTTPS://h:1/", [("h", 1, True)]),
        ("[::1]:23", [("::1", 23, False)]),
        ("https://[fe80::1%eth0]", [("fe80::1%eth0", 2379, True)]),
        ("a, b:2 ,c", [("a", 2379, False), ("b", 2, False), ("c", 2379, False)]),
        (["a:1", "b:2", "a:1"], [("a", 1, False), ("b", 2, False)]),
        (("https://a", "b"), [("a", 2379, True), ("b", 2379, True)]),
    ],
)
def test_parse(value: Any, expected: list[tuple[str, int, bool]]) -> None:
    assert [(found.host, found.port, found.tls) for found in parse_endpoints(value)] == expected


def test_certificates_mean_tls() -> None:
    assert parse_endpoints("a:1", tls=True) == (Endpoint("a", 1, tls=True),)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "is empty"),
        ([], "is empty"),
        ("a,,b", r"endpoint \(number 2\) that is empty"),
        (["a", ""], r"endpoint \(number 2\) that is empty"),
        ("http://a,https://b", "mixes http and https"),
        ("ftp://a", "scheme must be http or https"),
        ("a:port", "port must be a number"),
        ("a:", "port must be a number"),
        ("a:0", "port must be a number"),
        ("a:65536", "port must be a number"),
        ("a:" + "9" * 5000, "port must be a number"),
        ("a:٣", "port must be a number"),
        ("::1", r"IPv6 endpoint is written \[::1\]:2379"),
        ("[::1", "IPv6"),
        ("[::1]2379", "IPv6"),
        ("[nonsense]:1", "IPv6"),
        ("http://a/v3", "without path or query"),
        ("a?x=1", "without path or query"),
        ("a b", "a space or control character"),
        ("a%b", "host name isn't valid"),
        ("[]:1", "IPv6"),
        ("[::1]:2:3", "IPv6"),
        ("memory://", "scheme must be http or https"),
        ("http://", "host name isn't valid"),
        (["a", 5], "a list of endpoints or one comma-separated str, not a list"),
        (5, "a list of endpoints or one comma-separated str, not an int"),
        (None, "a list of endpoints or one comma-separated str, not a NoneType"),
    ],
)
def test_refused(value: Any, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message) as caught:
        parse_endpoints(value)
    assert "etcdlock_endpoints" in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "http://user:hunter2@a:1",
        "user:hunter2@a:1",
        "etcd://user:hunter2@a:1",
        "a:1,http://user:hunter2@b",
        ["http://user:hunt/er2@a"],
        "user:hunter2@",
    ],
)
def test_a_password_is_refused_and_not_printed(value: Any) -> None:
    with pytest.raises(InvalidSetting, match="etcdlock_username and etcdlock_password") as caught:
        parse_endpoints(value)
    assert "hunt" not in str(caught.value)


def test_plain_scheme_with_certificates_is_a_contradiction() -> None:
    with pytest.raises(InvalidSetting, match="etcdlock_ca_cert"):
        EtcdClient("http://a", ca_cert="/some/file")


def test_repr_names_endpoints_but_no_password() -> None:
    client = EtcdClient("a:1,b:2", username="joe", password="hunter2")
    assert repr(client) == "<EtcdClient of a:1, b:2>"


def test_failed_endpoint_rests_and_rest_is_bounded() -> None:
    first, second = EndpointHealth(Endpoint("a")), EndpointHealth(Endpoint("b"))
    assert next_endpoint([first, second], 100.0) is first
    first.failed(100.0)
    assert next_endpoint([first, second], 100.0) is second
    second.failed(100.0)
    for _ in range(3):
        first.failed(100.0)
    assert next_endpoint([first, second], 100.0) is second, "the one that wakes first"
    for _ in range(2000):
        first.failed(100.0)
    assert 100.0 < first.rests_until <= 100.0 + LONGEST_REST_SECONDS
    first.succeeded()
    assert next_endpoint([second, first], 100.0) is first
