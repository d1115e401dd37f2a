"""The servers of ``celery_etcdlock.testing``, under the name that these tests know them by."""

from __future__ import annotations

import contextlib
import signal

from celery_etcdlock.testing.etcd_server import EtcdCluster, EtcdServer, ServerTls, etcd_binary, free_ports

__all__ = ["EtcdCluster", "EtcdServer", "ServerTls", "etcd_binary", "free_ports", "running_etcd"]

#: ``with running_etcd() as server:``
running_etcd = EtcdServer

if __name__ == "__main__":
    with EtcdServer() as started:
        print(started.endpoint, "pid", started.pid, "- ctrl-c to end", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
