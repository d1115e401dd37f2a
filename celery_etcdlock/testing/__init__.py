"""For tests of projects that use celery-etcdlock (``docs/testing.md``). The fixtures are in ``pytest_plugin``."""

from celery_etcdlock.testing.etcd_server import EtcdCluster, EtcdServer
from celery_etcdlock.testing.locks import assert_free, assert_locked, hold, use_locks

__all__ = ["EtcdCluster", "EtcdServer", "assert_free", "assert_locked", "hold", "use_locks"]
