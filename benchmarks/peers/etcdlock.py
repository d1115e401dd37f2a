"""Our own lock, as a caller without a task uses it: ``EtcdLocks.from_app(app).lock(name)``."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from importlib.metadata import version

from celery import Celery

from benchmarks.peers.line_protocol import LockClient, serve
from celery_etcdlock import EtcdLocks

WAIT_SECONDS = 120
TIMEOUT_SECONDS = 20


def main(endpoint: str, **settings: object) -> None:
    app = Celery("bench", broker="memory://", set_as_current=False)
    app.conf.etcdlock_endpoints = endpoint
    # So that a thousand waiters that start at once on a busy machine all come into line.
    app.conf.etcdlock_timeout = TIMEOUT_SECONDS
    app.conf.update(settings)
    locks = EtcdLocks.from_app(app)

    def lock(name: str, wait_seconds: float = 0.0) -> Callable[[], object]:
        held = locks.lock(name, wait_timeout=wait_seconds)
        held.__enter__()
        return lambda: held.__exit__(None, None, None)

    lock("bench")()
    transport = f"grpcio {version('grpcio')}" if settings else f"own HTTP/2 frames, hpack {version('hpack')}"
    versions = f"{transport}, protobuf {version('protobuf')}, Python {platform.python_version()}"

    def contenders(name: str) -> int:
        # Those of one process queue in it, with one place in the store's line: the holder, and those.
        return 1 + locks.access().local_waiters.queued([name])

    serve(versions, LockClient(lock, lambda name: lock(name, WAIT_SECONDS), contenders))
    locks.close()


if __name__ == "__main__":
    main(sys.argv[1])
