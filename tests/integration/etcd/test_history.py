"""An etcd that isn't the one it was is refused: another cluster's, or one that forgot what it had said."""

from __future__ import annotations

import shutil

import pytest
from celery import Celery

from celery_etcdlock import EtcdLocks, LockUnavailable
from tests.etcd_server import EtcdServer, running_etcd
from tests.fault_proxy import FaultProxy


def locks_at(endpoint: str) -> EtcdLocks:
    app = Celery("history", broker="memory://", set_as_current=False)
    app.conf.update(etcdlock_endpoints=endpoint, etcdlock_ttl=3, etcdlock_timeout=1)
    return EtcdLocks.from_app(app)


def test_endpoints_of_two_clusters_in_one_setting(etcd: EtcdServer) -> None:
    with running_etcd(fsync=False) as stranger, FaultProxy(etcd.port) as proxy:
        locks = locks_at(proxy.endpoint)
        with locks.lock("a") as lock:
            proxy.server_port = stranger.port
            proxy.cut()
            with pytest.raises(
                LockUnavailable, match="name the members of one cluster in etcdlock_endpoints"
            ) as caught:
                locks.lock("b").__enter__()
            assert caught.value.permanent
            proxy.server_port = etcd.port
            proxy.cut()
            with locks.lock("b"):
                lock.check()
        locks.close()


def test_revisions_that_went_back() -> None:
    with running_etcd(fsync=False) as server:
        locks = locks_at(server.endpoint)
        for _ in range(5):
            with locks.lock("a"):
                pass
        server.kill()
        shutil.rmtree(f"{server.data_dir}/data")
        server.spawn().wait_healthy()
        with pytest.raises(LockUnavailable, match=r"revisions went back.*--bump-revision"):
            locks.lock("a").__enter__()
        locks.close()
