"""Calls the task of one of ``worker_apps``, 99 of 100 times a duplicate; nobody consumes what is published."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from itertools import count

from benchmarks.peers.line_protocol import LockClient, serve

UNIQUE_EVERY = 100


def main(module: str) -> None:
    call = importlib.import_module(f"benchmarks.worker_apps.{module}").call
    numbers = count()

    def enqueue(_: str) -> Callable[[], object]:
        call(next(numbers) // UNIQUE_EVERY)
        return lambda: None

    serve(module, LockClient(enqueue))


if __name__ == "__main__":
    main(sys.argv[1])
