"""The tasks of the e2e tests. pytest-celery copies this file into the workers' containers, so it imports no other file
of the tests. Evidence goes to a directory of the host, which outlives a killed container and needs no network.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from celery_etcdlock import current_lock, singleton_task

EVIDENCE = "/evidence/bodies"
STEP_SECONDS = 0.02


def note(event: str, **what: Any) -> None:
    """One line: a single append, so that lines of several processes don't mix. All containers share one clock."""
    line = json.dumps({"event": event, "host": socket.gethostname(), "at": time.monotonic(), **what}) + "\n"
    descriptor = os.open(EVIDENCE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def body(seconds: float) -> int:
    """Stay inside the lock, and write down when it was believed. Ends by ``LockLost`` when it isn't any more."""
    lock = current_lock()
    facts = {"name": lock.name, "token": lock.fencing_token}
    note("enter", **facts)
    try:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and not os.path.exists(f"{EVIDENCE}.end"):
            # The time is taken before the check: whoever passes believed at least until then.
            at = time.monotonic()
            lock.check()
            note("believed", **{**facts, "at": at})
            time.sleep(STEP_SECONDS)
    finally:
        note("exit", **facts, lost=lock.lost)
    return lock.fencing_token


@singleton_task
def single(seconds: float = 0.0) -> int:
    return body(seconds)


@singleton_task(unique_on=["key"], on_conflict="retry")
def per_key(key: str, seconds: float = 0.0) -> int:
    return body(seconds)


@singleton_task(on_conflict="raise")
def strict(seconds: float = 0.0) -> int:
    return body(seconds)
