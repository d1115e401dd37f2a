"""Our own lock, as a caller without a task uses it: ``EtcdLocks.from_app(app).lock(name)``."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version

from celery import Celery

from benchmarks.peers.line_protocol import serve
from celery_etcdlock import EtcdLocks


def main(endpoint: str) -> None:
    app = Celery("bench", broker="memory://", set_as_current=False)
    app.conf.etcdlock_endpoints = endpoint
    locks = EtcdLocks.from_app(app)

    def lock_and_unlock() -> None:
        with locks.lock("bench"):
            pass

    lock_and_unlock()
    versions = f"h2 {version('h2')}, protobuf {version('protobuf')}, Python {platform.python_version()}"
    serve(versions, lock_and_unlock)
    locks.close()


if __name__ == "__main__":
    main(sys.argv[1])
