"""What a task does while it holds its lock, on record. Only the standard library: peers' environments have no more.

Two records. The log: one line of JSON for each thing that happens, with ``CLOCK_MONOTONIC``, which all processes of a
machine share, in a single ``O_APPEND`` write. The register: the resource that the lock protects, which refuses fencing
tokens lower than the highest that it has seen. Each entrance gets a number from the register, so that a stale write,
one that comes after a later entrance's, is known as such whether or not its client has tokens.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence

__all__ = ["inside", "note"]

PAUSE_SECONDS = 0.03
BUSY_SECONDS = 20.0


def note(**what: object) -> None:
    line = json.dumps({"at": time.clock_gettime(time.CLOCK_MONOTONIC), **what}) + "\n"
    descriptor = os.open(os.environ["CHAOS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class Register:
    """One row: the number of entrances, the newest that wrote, and the highest fencing token."""

    def __init__(self) -> None:
        path = os.environ["CHAOS_REGISTER"]
        self._database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        self._database.execute("PRAGMA synchronous=OFF")
        columns = "one INTEGER PRIMARY KEY, entered INTEGER, wrote INTEGER, token INTEGER"
        self._database.execute(f"CREATE TABLE IF NOT EXISTS register ({columns})")
        self._database.execute("INSERT OR IGNORE INTO register VALUES (1, 0, 0, 0)")

    def enter(self) -> int:
        [[number]] = self._database.execute("UPDATE register SET entered = entered + 1 RETURNING entered").fetchall()
        return int(number)

    def write(self, entrance: int, token: int | None) -> tuple[bool, bool]:
        """Returns whether the write was stale, and whether it was accepted."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            [[wrote, highest]] = self._database.execute("SELECT wrote, token FROM register").fetchall()
            accepted = token is None or token >= highest
            if accepted:
                values = (max(wrote, entrance), max(highest, token or 0))
                self._database.execute("UPDATE register SET wrote = ?, token = ?", values)
            return entrance < wrote, accepted
        finally:
            self._database.execute("COMMIT")


def inside(
    task_id: str,
    seconds: float,
    *,
    token: int | None = None,
    check: Callable[[], object] = lambda: None,
    helpers: Sequence[int] = (),
) -> None:
    """Hold the lock for so long, and write all the time. ``helpers`` are processes that hold the lock for this one."""
    register = Register()
    entrance = register.enter()
    who = {"entrance": entrance, "task": task_id}
    note(event="enter", pid=os.getpid(), parent=os.getppid(), helpers=list(helpers), token=token, **who)
    completed = False
    try:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            check()
            stale, accepted = register.write(entrance, token)
            if stale:
                note(event="stale write", accepted=accepted, **who)
            time.sleep(PAUSE_SECONDS)
        completed = True
    finally:
        try:
            note(event="exit", completed=completed, **who)
        except BaseException:
            # Interrupted even here, which happens once: it ends here all the same.
            note(event="exit", completed=completed, **who)
            raise
