"""etcd3gw's ``Lock``: JSON over etcd's HTTP gateway, a lease for each acquire, never revoked (see python_etcd3)."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from importlib.metadata import version

import etcd3gw  # type: ignore[import-not-found,unused-ignore]
from requests.adapters import HTTPAdapter  # type: ignore[import-untyped,unused-ignore]

from benchmarks.peers.line_protocol import LockClient, serve

TTL_SECONDS = 1800
CONNECTIONS = 64


def main(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    client = etcd3gw.client(host=host, port=int(port), timeout=10)
    # As many connections as callers: its own ten would be a limit that isn't the lock's.
    client.session.mount("http://", HTTPAdapter(pool_connections=CONNECTIONS, pool_maxsize=CONNECTIONS))

    def acquire(name: str) -> Callable[[], object]:
        lock = client.lock(name, ttl=TTL_SECONDS)
        if not lock.acquire():
            raise SystemExit("etcd3gw didn't get the lock")
        release: Callable[[], object] = lock.release
        return release

    acquire("bench")()
    serve(f"etcd3gw {version('etcd3gw')}, Python {platform.python_version()}", LockClient(acquire))


if __name__ == "__main__":
    main(sys.argv[1])
