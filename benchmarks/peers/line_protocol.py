"""How a lock client is driven: ``run N`` in on standard input, one line of JSON out, until standard input ends.

The first line out is ``{"ready": "versions"}``, once the client is connected. Imports nothing but the standard library,
since a peer's own environment has neither Celery nor this project's dependencies.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

__all__ = ["serve"]


def serve(versions: str, lock_and_unlock: Callable[[], None]) -> None:
    """Answer commands until standard input ends."""
    print(json.dumps({"ready": versions}), flush=True)
    for line in sys.stdin:
        command, count = line.split()
        if command != "run":
            raise SystemExit(f"not a command: {line!r}")
        print(json.dumps(_run(lock_and_unlock, int(count))), flush=True)


def _run(lock_and_unlock: Callable[[], None], pairs: int) -> dict[str, object]:
    microseconds = []
    cpu_started = time.process_time()
    for _ in range(pairs):
        started = time.perf_counter()
        lock_and_unlock()
        microseconds.append(round((time.perf_counter() - started) * 1e6, 1))
    return {"microseconds": microseconds, "cpu_microseconds": (time.process_time() - cpu_started) * 1e6}
