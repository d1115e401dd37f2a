"""celery-etcdlock's fixtures for pytest, which finds them by itself. ``-p no:etcdlock`` leaves them out.

pytest imports it at every start, also for tests that never touch Celery. So it imports nothing but the package's own
``__init__``, which knows only the errors; the rest comes with the first fixture that is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from celery_etcdlock.testing import EtcdCluster, EtcdServer

__all__ = ["etcd_cluster", "etcd_server", "etcdlock_memory"]


@pytest.fixture
def etcdlock_memory() -> Iterator[None]:
    """Locks in this process's memory, empty at first: eager tasks and in-process workers need no etcd."""
    from celery_etcdlock.testing import use_locks

    with use_locks("memory://"):
        yield


@pytest.fixture(scope="session")
def etcd_server() -> Iterator[EtcdServer]:
    """A real etcd on a free port, for all tests of the session.

    ``etcd_server.endpoint`` is what ``etcdlock_endpoints`` wants; ``pause``, ``resume``, ``kill`` and ``start`` make
    outages.
    """
    from celery_etcdlock.testing import EtcdServer

    try:
        server = EtcdServer(fsync=False)
    except FileNotFoundError as error:
        pytest.fail(str(error), pytrace=False)
    with server:
        yield server


@pytest.fixture(scope="session")
def etcd_cluster() -> Iterator[EtcdCluster]:
    """Three etcd members on free ports, for all tests of the session: ``etcd_cluster.endpoints``, ``.members``."""
    from celery_etcdlock.testing import EtcdCluster

    try:
        with EtcdCluster(fsync=False) as cluster:
            yield cluster
    except FileNotFoundError as error:
        pytest.fail(str(error), pytrace=False)
