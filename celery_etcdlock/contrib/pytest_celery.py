"""etcd as a component of pytest-celery's test environment, beside its brokers, backends and workers.

Load it in ``conftest.py`` by ``pytest_plugins = ["celery_etcdlock.contrib.pytest_celery"]``. Every worker container
then gets the address of ``celery_etcd`` as ``ETCDLOCK_ENDPOINTS``, and the test's own process has its locks there too.
For three members instead of one, override ``celery_etcd`` by a fixture that returns ``celery_etcd_cluster``. The
worker's image must have celery-etcdlock installed, which pytest-celery's own has not: ``docs/testing.md`` has it all,
to paste.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import pytest
from pytest_celery import CeleryTestCluster, CeleryTestContainer, CeleryTestNode
from pytest_celery.vendors.worker.container import CeleryWorkerContainer
from pytest_docker_tools import container

from celery_etcdlock.testing.etcd_server import is_healthy
from celery_etcdlock.testing.locks import use_locks

#: Another one: the variable ``ETCD_IMAGE``, or a fixture ``default_etcd_image`` of your own.
ETCD_IMAGE = os.environ.get("ETCD_IMAGE", "quay.io/coreos/etcd:v3.6.14")
CLIENT_PORT = "2379/tcp"
START_SECONDS = 60.0
MEMBERS = ("etcd1", "etcd2", "etcd3")


class EtcdContainer(CeleryTestContainer):  # type: ignore[misc]  # pytest-celery has no types
    @property
    def url(self) -> str:
        """Its endpoint for other containers on the network."""
        return f"{self.hostname}:2379"

    @property
    def host_url(self) -> str:
        """Its endpoint for the test's process."""
        address, port = self.get_addr(CLIENT_PORT)
        return f"{address}:{port}"

    @property
    def hostname(self) -> str:
        return str(self.attrs["Config"]["Hostname"])

    @property
    def port(self) -> int:
        return int(self.get_addr(CLIENT_PORT)[1])

    @property
    def celeryconfig(self) -> dict[str, Any]:
        return {"url": self.url, "host_url": self.host_url, "hostname": self.hostname, "port": self.port}

    @classmethod
    def command(cls, name: str = "etcd", members: tuple[str, ...] = (), **_: Any) -> list[str]:
        """etcd as the member ``name`` of a cluster whose ``members`` are host names of the network."""
        here = name if members else "127.0.0.1"
        peers = [f"{member}=http://{member}:2380" for member in members] or [f"{name}=http://{here}:2380"]
        return [
            "etcd",
            f"--name={name}",
            "--data-dir=/tmp/etcd",
            "--listen-client-urls=http://0.0.0.0:2379",
            f"--advertise-client-urls=http://{here}:2379",
            "--listen-peer-urls=http://0.0.0.0:2380",
            f"--initial-advertise-peer-urls=http://{here}:2380",
            f"--initial-cluster={','.join(peers)}",
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=5m",
            "--unsafe-no-fsync",
        ]

    def get_open_tcp_ports(self) -> list[str]:
        """etcd's image has no shell to ask with; whether it answers is asked by ``healthy``."""
        return ["2379"]

    def healthy(self) -> bool:
        """Whether this member serves requests, for which it needs a quorum of its cluster."""
        try:
            return is_healthy(f"http://{self.host_url}")
        except IndexError:  # no port yet
            return False


class EtcdTestNode(CeleryTestNode):  # type: ignore[misc]
    """An etcd member as tests use it: ``kill`` and ``restart`` as every node has them, and ``pause`` and ``resume``."""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """For ``etcdlock_endpoints`` in the test's process."""
        return (self.container.host_url,)

    @property
    def worker_endpoints(self) -> tuple[str, ...]:
        """For ``etcdlock_endpoints`` in the workers' containers."""
        return (self.container.url,)

    def ready(self) -> bool:
        """Wait until the member serves requests. Raises ``RuntimeError`` with its log when it doesn't in time."""
        deadline = time.monotonic() + START_SECONDS
        while not self.container.healthy():
            self.container.reload()
            if self.container.status == "exited" or time.monotonic() > deadline:
                raise RuntimeError(f"etcd ({self.name()}) doesn't serve requests:\n{self.logs()[-2000:]}")
            time.sleep(0.05)
        return True

    def pause(self) -> None:
        """Stop the world for it: connections stay open and nothing answers."""
        self.container._container.pause()

    def resume(self) -> None:
        self.container._container.unpause()


class EtcdCluster(CeleryTestCluster):  # type: ignore[misc]
    def _set_nodes(self, *nodes: Any, node_cls: type[EtcdTestNode] = EtcdTestNode) -> tuple[EtcdTestNode, ...]:
        members: tuple[EtcdTestNode, ...] = super()._set_nodes(*nodes, node_cls=node_cls)
        return members

    @property
    def endpoints(self) -> tuple[str, ...]:
        """For ``etcdlock_endpoints`` in the test's process."""
        return tuple(endpoint for node in self for endpoint in node.endpoints)

    @property
    def worker_endpoints(self) -> tuple[str, ...]:
        """For ``etcdlock_endpoints`` in the workers' containers."""
        return tuple(endpoint for node in self for endpoint in node.worker_endpoints)


Etcd = TypeVar("Etcd", EtcdTestNode, EtcdCluster)


@pytest.fixture
def default_etcd_image() -> str:
    """etcd's image: one that has ``etcd`` on its PATH."""
    return ETCD_IMAGE


def _member(name: str, *members: str) -> Any:
    return container(
        image="{default_etcd_image}",
        command=EtcdContainer.command(name, members),
        ports={CLIENT_PORT: None},
        network="{default_pytest_celery_network.name}",
        networking_config={"{default_pytest_celery_network.name}": {"Aliases": [name]}},
        wrapper_class=EtcdContainer,
    )


#: One etcd of its own, and the three of a cluster: the containers, not yet waited for.
default_etcd = _member("etcd")
default_etcd_member1 = _member("etcd1", *MEMBERS)
default_etcd_member2 = _member("etcd2", *MEMBERS)
default_etcd_member3 = _member("etcd3", *MEMBERS)


@pytest.fixture
def celery_etcd(default_etcd: EtcdContainer) -> Iterator[EtcdTestNode | EtcdCluster]:
    """One etcd, healthy; the test's own process has its locks there."""
    yield from _with_locks_in(EtcdTestNode(default_etcd))


@pytest.fixture
def celery_etcd_cluster(
    default_etcd_member1: EtcdContainer, default_etcd_member2: EtcdContainer, default_etcd_member3: EtcdContainer
) -> Iterator[EtcdCluster]:
    """Three etcd members, healthy; the test's own process has its locks there."""
    yield from _with_locks_in(EtcdCluster(default_etcd_member1, default_etcd_member2, default_etcd_member3))


def _with_locks_in(etcd: Etcd) -> Iterator[Etcd]:
    etcd.ready()
    with use_locks(*etcd.endpoints):
        yield etcd
    etcd.teardown()


@pytest.fixture
def default_worker_env(
    default_worker_container_cls: type[CeleryWorkerContainer],
    celery_worker_cluster_config: dict[str, Any],
    celery_etcd: EtcdTestNode | EtcdCluster,
) -> dict[str, Any]:
    """pytest-celery's own, with the address of ``celery_etcd``."""
    environment: dict[str, Any] = default_worker_container_cls.initial_env(celery_worker_cluster_config)
    return {**environment, "ETCDLOCK_ENDPOINTS": ",".join(celery_etcd.worker_endpoints)}
