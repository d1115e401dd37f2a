"""A lock of OpenStack's tooz with its etcd3gw driver; a lease for each acquire, never revoked (see python_etcd3)."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from importlib.metadata import version

from requests.adapters import HTTPAdapter  # type: ignore[import-untyped,unused-ignore]
from tooz import coordination  # type: ignore[import-not-found,unused-ignore]

from benchmarks.peers.line_protocol import LockClient, serve

TTL_SECONDS = 1800
CONNECTIONS = 64


def main(endpoint: str) -> None:
    url = f"etcd3+http://{endpoint}?lock_timeout={TTL_SECONDS}&timeout=10"
    coordinator = coordination.get_coordinator(url, b"bench")
    coordinator.start()
    coordinator.client.session.mount("http://", HTTPAdapter(pool_connections=CONNECTIONS, pool_maxsize=CONNECTIONS))

    def acquire(name: str) -> Callable[[], object]:
        lock = coordinator.get_lock(name.encode())
        if not lock.acquire(blocking=False):
            raise SystemExit("tooz didn't get the lock")
        release: Callable[[], object] = lock.release
        return release

    acquire("bench")()
    serve(
        f"tooz {version('tooz')}, etcd3gw {version('etcd3gw')}, Python {platform.python_version()}", LockClient(acquire)
    )


if __name__ == "__main__":
    main(sys.argv[1])
