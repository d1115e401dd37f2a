"""python-etcd3's ``Lock``, in an environment where it imports (protobuf below 3.21).

It grants a lease at each acquire and never revokes it. The long TTL keeps the expiry of those leases, which costs etcd
commits of its own, out of the other clients' rounds.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from importlib.metadata import version

import etcd3  # type: ignore[import-untyped,import-not-found,unused-ignore]
from google.protobuf.internal import api_implementation

from benchmarks.peers.line_protocol import LockClient, serve

TTL_SECONDS = 1800


def main(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    client = etcd3.client(host=host, port=int(port), timeout=10)

    def acquire(name: str) -> Callable[[], object]:
        # Its "with" block ignores a failed acquire, and asking is_acquired() would be one more request.
        lock = client.lock(name, ttl=TTL_SECONDS)
        if not lock.acquire():
            raise SystemExit("python-etcd3 didn't get the lock")
        release: Callable[[], object] = lock.release
        return release

    acquire("bench")()
    protobuf = f"protobuf {version('protobuf')} ({api_implementation.Type()})"
    serve(
        f"etcd3 {version('etcd3')}, grpcio {version('grpcio')}, {protobuf}, Python {platform.python_version()}",
        LockClient(acquire),
    )


if __name__ == "__main__":
    main(sys.argv[1])
