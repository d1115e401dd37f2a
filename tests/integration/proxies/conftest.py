"""The store, and apps, whose etcd is behind a proxy."""

from __future__ import annotations

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

KINDS = ("nginx", "haproxy", "grpc-proxy", "gateway", "grpcio")
_numbers = itertools.count()

StartProxy = Callable[..., Proxy]


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
        if kind == "grpcio":
            pytest.importorskip("grpc")
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


@pytest.fixture(scope="module", params=KINDS)
def proxy(request: pytest.FixtureRequest, start_proxy: StartProxy) -> Proxy:
    return start_proxy(request.param)


@pytest.fixture
def new_store(proxy: Proxy) -> Iterator[Callable[[], LockStore]]:
    prefix = f"/proxied-{next(_numbers)}/"
    opened: list[LockStore] = []

    def open_store() -> LockStore:
        opened.append(EtcdStore(EtcdClient(proxy.endpoint), prefix))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def store(new_store: Callable[[], LockStore]) -> LockStore:
    return new_store()
