"""Calls the task of one of ``worker_apps``, 99 of 100 times a duplicate or so; nobody consumes what is published.

``python -m benchmarks.peers.enqueue MODULE [N]``: one of N calls is unique.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from itertools import count

from benchmarks.peers.line_protocol import LockClient, serve

UNIQUE_EVERY = 100


def main(module: str, unique_every: int = UNIQUE_EVERY) -> None:
    call = importlib.import_module(f"benchmarks.worker_apps.{module}").call
    numbers = count()

    def enqueue(_: str) -> Callable[[], object]:
        call(next(numbers) // unique_every)
        return lambda: None

    serve(module, LockClient(enqueue))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
