"""redis-py's ``Lock``: one Redis, a TTL that nothing renews, waiters that poll each 0.1 s."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from importlib.metadata import version

from redis import Redis

from benchmarks.peers.line_protocol import LockClient, serve

TTL_SECONDS = 1800
WAIT_SECONDS = 120
#: Above its default, which a thousand waiters exceed.
MOST_CONNECTIONS = 2000


def main(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    client = Redis(host=host, port=int(port), max_connections=MOST_CONNECTIONS)

    def lock(name: str, wait_seconds: float = 0.0) -> Callable[[], object]:
        held = client.lock(name, timeout=TTL_SECONDS)
        if not held.acquire(blocking=wait_seconds > 0, blocking_timeout=wait_seconds or None):
            raise SystemExit("redis-py didn't get the lock")
        release: Callable[[], object] = held.release
        return release

    lock("bench")()
    server = client.info("server")["redis_version"]
    serve(
        f"redis-py {version('redis')}, Redis {server}, Python {platform.python_version()}",
        LockClient(lock, lambda name: lock(name, WAIT_SECONDS)),
    )


if __name__ == "__main__":
    main(sys.argv[1])
