"""How a lock client is driven: a command in on standard input, one line of JSON out, until standard input ends.

The first line out is ``{"ready": "versions"}``, once the client is connected. Commands are those of ``workloads``.
Imports nothing but the standard library, since a peer's own environment has neither Celery nor this project's
dependencies.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from benchmarks.peers.workloads import LockClient, Workloads

__all__ = ["LockClient", "serve"]


def serve(versions: str, client: LockClient) -> None:
    """Answer commands until standard input ends."""
    workloads = Workloads(client)
    commands: dict[str, Callable[..., dict[str, object]]] = {
        "run": workloads.run,
        "many": workloads.many,
        "distinct": workloads.distinct,
        "handoff": workloads.hand_off,
        "hold": workloads.hold,
    }
    print(json.dumps({"ready": versions}), flush=True)
    for line in sys.stdin:
        command, *numbers = line.split()
        if command not in commands:
            raise SystemExit(f"not a command: {line!r}")
        print(json.dumps(commands[command](*map(int, numbers))), flush=True)
