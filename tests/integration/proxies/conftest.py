"""The store, and apps, whose etcd is behind a proxy."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator

import pytest

from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.etcd_store import EtcdStore
from celery_etcdlock.locking.lock_store import LockStore
from tests.conftest import missing
from tests.etcd_server import EtcdServer, ServerTls
from tests.integration.etcd.conftest import Authority
from tests.integration.proxies.proxies import Proxy

#: Those that have time-outs of their own for calls and connections on which nothing is said.
IMPATIENT = ("nginx", "haproxy", "grpcio")
KINDS = ("nginx", "haproxy", "grpc-proxy", "gateway", "grpcio")
_numbers = itertools.count()

StartProxy = Callable[..., Proxy]


def name_of(kind_and_tls: tuple[str, bool]) -> str:
    kind, tls = kind_and_tls
    return f"{kind}-{'tls' if tls else 'plain'}"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "right")


@pytest.fixture(scope="session")
def tls_etcd(authority: Authority) -> Iterator[EtcdServer]:
    """For the gateway, which doesn't look into what it passes on."""
    with EtcdServer(fsync=False, tls=ServerTls(*authority.issue("etcd"))) as server:
        yield server


@pytest.fixture(scope="session")
def start_proxy(
    etcd: EtcdServer, authority: Authority, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartProxy]:
    """Start a proxy of a kind: ``start_proxy(kind, tls=False, idle_seconds=600, before=etcd)``."""
    started: list[Proxy] = []

    def start(kind: str, *, tls: bool = False, idle_seconds: int = 600, before: str = etcd.endpoint) -> Proxy:
        if kind == "grpcio" and importlib.util.find_spec("grpc") is None:
            missing("grpcio (pip install grpcio)")
        certificate = authority.issue(kind) if tls else None
        if kind == "gateway" and tls:
            before = request.getfixturevalue("tls_etcd").endpoint
        try:
            proxy = Proxy(kind, before, tmp_path_factory.mktemp(kind), certificate, idle_seconds).start()
        except FileNotFoundError as error:
            missing(str(error))
        started.append(proxy)
        return proxy

    yield start
    for proxy in started:
        proxy.kill()


@pytest.fixture(scope="module", params=[(kind, tls) for kind in KINDS for tls in (False, True)], ids=name_of)
def proxied(request: pytest.FixtureRequest, start_proxy: StartProxy, authority: Authority) -> Callable[[], EtcdClient]:
    """Makes clients of an etcd behind one proxy."""
    kind, tls = request.param
    proxy = start_proxy(kind, tls=tls)
    if tls:
        return lambda: EtcdClient(f"https://{proxy.endpoint}", ca_cert=authority.ca_cert)
    return lambda: EtcdClient(proxy.endpoint)


@pytest.fixture
def new_store(proxied: Callable[[], EtcdClient]) -> Iterator[Callable[[], LockStore]]:
    prefix = f"/proxied-{next(_numbers)}/"
    opened: list[LockStore] = []

    def open_store() -> LockStore:
        opened.append(EtcdStore(proxied(), prefix))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def store(new_store: Callable[[], LockStore]) -> LockStore:
    return new_store()
