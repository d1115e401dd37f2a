"""TLS and client certificates."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.errors import ConnectFailed, NotEtcd, PermissionDenied, TlsFailed
from tests.etcd_server import EtcdServer, ServerTls, running_etcd


@pytest.fixture(scope="module")
def tls_etcd(authority: Any) -> Iterator[EtcdServer]:
    cert, key = authority.issue("server")
    with running_etcd(tls=ServerTls(cert, key)) as server:
        yield server


@pytest.fixture(scope="module")
def mutual_etcd(authority: Any) -> Iterator[EtcdServer]:
    cert, key = authority.issue("server")
    with running_etcd(tls=ServerTls(cert, key, client_ca=authority.ca_cert)) as server:
        yield server


def test_right_ca(tls_etcd: EtcdServer, authority: Any, make_api: Any) -> None:
    api = make_api(EtcdClient(tls_etcd.endpoint, ca_cert=authority.ca_cert))
    api.put(b"k", b"x" * 300_000)
    assert api.get(b"k") == b"x" * 300_000
    assert len(api.client._pool.idle) == 1


@pytest.mark.parametrize("ca", ["wrong", None])
def test_wrong_ca(tls_etcd: EtcdServer, other_authority: Any, make_api: Any, ca: str | None) -> None:
    ca_cert = other_authority.ca_cert if ca else None
    with pytest.raises(TlsFailed, match="set etcdlock_ca_cert to the CA that signed it") as caught:
        make_api(EtcdClient(tls_etcd.url, ca_cert=ca_cert)).put(b"k")
    assert caught.value.permanent
    assert not caught.value.maybe_applied
    assert tls_etcd.endpoint in str(caught.value)


def test_certificate_for_another_host(authority: Any, make_api: Any) -> None:
    cert, key = authority.issue("elsewhere", address="127.0.0.9")
    with (
        running_etcd(tls=ServerTls(cert, key)) as server,
        pytest.raises(TlsFailed, match="for another host name") as caught,
    ):
        make_api(EtcdClient(server.endpoint, ca_cert=authority.ca_cert)).put(b"k")
    assert caught.value.permanent


def test_plain_server_behind_tls_settings(etcd: EtcdServer, authority: Any, make_api: Any) -> None:
    with pytest.raises(ConnectFailed, match=r"use http:// in etcdlock_endpoints"):
        make_api(EtcdClient(etcd.endpoint, ca_cert=authority.ca_cert), 2).put(b"k")


def test_tls_server_behind_plain_settings(tls_etcd: EtcdServer, make_api: Any) -> None:
    with pytest.raises(ConnectFailed, match=r"https://.*etcdlock_ca_cert|etcdlock_ca_cert.*https://"):
        make_api(EtcdClient(tls_etcd.endpoint), 2).put(b"k")


def test_http1_server_on_the_port(etcd: EtcdServer, make_api: Any) -> None:
    with pytest.raises(NotEtcd, match="is this etcd's client port") as caught:
        make_api(EtcdClient(f"127.0.0.1:{etcd.ports[2]}"), 5).put(b"k")
    assert caught.value.permanent


@pytest.mark.parametrize("which", ["ca_cert", "client_cert"])
def test_missing_file(tls_etcd: EtcdServer, authority: Any, make_api: Any, which: str) -> None:
    options = {"ca_cert": authority.ca_cert, which: "/no/such/file.pem"}
    with pytest.raises(TlsFailed, match=f"etcdlock_{which}: '/no/such/file.pem'.*No such file") as caught:
        make_api(EtcdClient(tls_etcd.endpoint, **options)).put(b"k")
    assert caught.value.permanent


def test_file_without_a_certificate(tls_etcd: EtcdServer, tmp_path: Path, make_api: Any) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    with pytest.raises(TlsFailed, match="etcdlock_ca_cert"):
        make_api(EtcdClient(tls_etcd.endpoint, ca_cert=str(empty))).put(b"k")


def test_encrypted_key_never_prompts(mutual_etcd: EtcdServer, authority: Any, make_api: Any) -> None:
    cert, key = authority.issue("sealed", passphrase=b"hunter2")
    with pytest.raises(TlsFailed, match="is encrypted"):
        make_api(EtcdClient(mutual_etcd.endpoint, ca_cert=authority.ca_cert, client_cert=cert, client_key=key)).put(
            b"k"
        )


def test_key_of_another_certificate(mutual_etcd: EtcdServer, authority: Any, make_api: Any) -> None:
    cert, _ = authority.issue("one")
    _, key = authority.issue("two")
    with pytest.raises(TlsFailed, match="isn't this certificate's"):
        make_api(EtcdClient(mutual_etcd.endpoint, ca_cert=authority.ca_cert, client_cert=cert, client_key=key)).put(
            b"k"
        )


def test_client_certificate(mutual_etcd: EtcdServer, authority: Any, make_api: Any) -> None:
    cert, key = authority.issue("client")
    options = {"ca_cert": authority.ca_cert, "client_cert": cert, "client_key": key}
    api = make_api(EtcdClient(mutual_etcd.endpoint, **options))
    api.put(b"k", b"1")
    assert api.get(b"k") == b"1"


def test_without_a_client_certificate(mutual_etcd: EtcdServer, authority: Any, make_api: Any) -> None:
    with pytest.raises(TlsFailed, match="set etcdlock_client_cert and etcdlock_client_key") as caught:
        make_api(EtcdClient(mutual_etcd.endpoint, ca_cert=authority.ca_cert), 3).put(b"k")
    assert caught.value.permanent
    assert not caught.value.maybe_applied


def test_client_certificate_of_another_ca(
    mutual_etcd: EtcdServer, authority: Any, other_authority: Any, make_api: Any
) -> None:
    cert, key = other_authority.issue("stranger")
    options = {"ca_cert": authority.ca_cert, "client_cert": cert, "client_key": key}
    with pytest.raises(TlsFailed, match="the server refused our certificate"):
        make_api(EtcdClient(mutual_etcd.endpoint, **options), 3).put(b"k")


def test_replaced_certificate_is_used(
    mutual_etcd: EtcdServer, authority: Any, other_authority: Any, tmp_path: Path, make_api: Any
) -> None:
    cert, key = tmp_path / "now.crt", tmp_path / "now.key"
    options = {"ca_cert": authority.ca_cert, "client_cert": str(cert), "client_key": str(key)}
    api = make_api(EtcdClient(mutual_etcd.endpoint, **options), 3)
    for source in zip(other_authority.issue("old"), (cert, key), strict=True):
        shutil.copy(*source)
    with pytest.raises(TlsFailed):
        api.put(b"k")
    for source in zip(authority.issue("new"), (cert, key), strict=True):
        shutil.copy(*source)
    api.put(b"k")


def test_common_name_auth(authority: Any, make_api: Any) -> None:
    cert, key = authority.issue("server")
    root, alice, mallory = (authority.issue(name) for name in ("root", "alice", "mallory"))
    with running_etcd(tls=ServerTls(cert, key, client_ca=authority.ca_cert)) as server:

        def as_(pair: tuple[str, str]) -> Any:
            return make_api(
                EtcdClient(server.endpoint, ca_cert=authority.ca_cert, client_cert=pair[0], client_key=pair[1])
            )

        admin = as_(root)
        admin.add_role("locks", b"/locks/", b"/locks0")
        admin.add_user("alice", "", "locks")
        admin.add_role("root")
        admin.add_user("root", "", "root")
        admin.enable_auth()
        as_(alice).put(b"/locks/a", b"1")
        assert as_(alice).get(b"/locks/a") == b"1"
        with pytest.raises(PermissionDenied, match="etcdlock_prefix") as caught:
            as_(alice).put(b"/elsewhere")
        assert caught.value.permanent
        with pytest.raises(PermissionDenied):
            as_(mallory).put(b"/locks/a")
