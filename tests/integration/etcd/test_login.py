"""User and password: tokens that expire, an auth store that changes, auth that is switched on late."""

from __future__ import annotations

import logging
import time
import traceback
from typing import Any

import pytest

from celery_etcdlock.etcd import messages as m
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.errors import AuthenticationFailed, EtcdError, PermissionDenied
from tests.etcd_server import running_etcd

AUTH_ARGS = ["--bcrypt-cost=4", "--auth-token-ttl=1"]
PASSWORD = "correct " + "horse"
WRONG = "hunter" + "2"  # in two parts, so that the source lines in a traceback don't hold it


def set_up(admin: Any) -> None:
    admin.add_role("root")
    admin.add_user("root", "rootpw", "root")
    admin.add_role("locks", b"/locks/", b"/locks0")
    admin.add_user("joe", PASSWORD, "locks")


@pytest.fixture
def server() -> Any:
    with running_etcd(extra_args=AUTH_ARGS) as started:
        yield started


def joe(server: Any, password: str = PASSWORD) -> EtcdClient:
    return EtcdClient(server.endpoint, username="joe", password=password)


def test_login(server: Any, make_api: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    admin = make_api(EtcdClient(server.endpoint))
    set_up(admin)
    admin.enable_auth()

    api = make_api(joe(server))
    api.put(b"/locks/a", b"1")
    assert api.get(b"/locks/a") == b"1"

    with pytest.raises(PermissionDenied, match="etcdlock_prefix") as denied:
        api.put(b"/elsewhere")
    assert denied.value.permanent

    with pytest.raises(AuthenticationFailed, match="check etcdlock_username and etcdlock_password") as wrong:
        make_api(joe(server, WRONG)).put(b"/locks/a")
    assert wrong.value.permanent
    assert not wrong.value.maybe_applied
    assert server.endpoint in str(wrong.value)
    assert WRONG not in "".join(traceback.format_exception(wrong.value))

    with pytest.raises(AuthenticationFailed, match="wants a login: set etcdlock_username") as missing:
        make_api(EtcdClient(server.endpoint)).put(b"/locks/a")
    assert missing.value.permanent

    for secret in (WRONG, PASSWORD, api.client._login._token):
        assert secret not in caplog.text


def test_expired_token(server: Any, make_api: Any, until: Any) -> None:
    admin = make_api(EtcdClient(server.endpoint))
    set_up(admin)
    admin.enable_auth()
    client = joe(server)
    api = make_api(client)
    api.put(b"/locks/a", b"1")
    old = client._login._token
    probe = EtcdClient(server.endpoint)

    def expired() -> bool:
        probe._login._token = old
        try:
            make_api(probe).get(b"/locks/a")
        except EtcdError as error:
            return "invalid auth token" in str(error)
        return False

    # asking renews a simple token: leave it alone for longer than it lives, then see that it has gone
    time.sleep(3)
    until(expired)
    request = m.WatchRequest(create_request=m.WatchCreateRequest(key=b"/locks/a", start_revision=1))
    with client.stream("/etcdserverpb.Watch/Watch", request.SerializeToString(), 30) as stream:
        assert not m.WatchResponse.FromString(next(stream)).canceled
        assert client._login._token != old
        assert m.WatchResponse.FromString(next(stream)).events
    client._login._token = old
    api.put(b"/locks/a", b"2")
    assert client._login._token != old
    assert api.get(b"/locks/a") == b"2"


def test_auth_store_that_changed(server: Any, make_api: Any) -> None:
    admin = make_api(EtcdClient(server.endpoint))
    set_up(admin)
    admin.enable_auth()
    api = make_api(joe(server))
    api.put(b"/locks/a", b"1")
    root = make_api(EtcdClient(server.endpoint, username="root", password="rootpw"))
    for number in range(3):
        root.add_role(f"other{number}")
        api.put(b"/locks/a", b"%d" % number)
        assert api.get(b"/locks/a") == b"%d" % number


def test_auth_that_is_switched_on_later(server: Any, make_api: Any) -> None:
    admin = make_api(EtcdClient(server.endpoint))
    set_up(admin)
    api = make_api(joe(server))
    api.put(b"/locks/a", b"1")  # "authentication is not enabled": goes on without a token
    admin.enable_auth()
    api.put(b"/locks/a", b"2")
    assert api.get(b"/locks/a") == b"2"
    root = make_api(EtcdClient(server.endpoint, username="root", password="rootpw"))
    root("Auth/AuthDisable", m.AuthDisableRequest(), m.AuthDisableResponse)
    api.put(b"/locks/a", b"3")
    fresh = make_api(joe(server))
    assert fresh.get(b"/locks/a") == b"3"


def test_watch_without_permission(server: Any, make_api: Any) -> None:
    admin = make_api(EtcdClient(server.endpoint))
    set_up(admin)
    admin.enable_auth()
    request = m.WatchRequest(create_request=m.WatchCreateRequest(key=b"/elsewhere"))
    with joe(server).stream("/etcdserverpb.Watch/Watch", request.SerializeToString(), 10) as stream:
        answer = m.WatchResponse.FromString(next(stream))
        assert answer.canceled
        assert "permission denied" in answer.cancel_reason
