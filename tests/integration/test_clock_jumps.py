"""Clocks that jump change nothing: trust is measured on a clock that nobody sets. Needs libfaketime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import missing
from tests.etcd_server import EtcdServer

LIBRARIES = [
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    *Path("/opt/homebrew/lib").glob("faketime/libfaketime.1.dylib"),
]

HOLDER = """
import os, select, sys, time
from celery import Celery
from celery_etcdlock import EtcdLocks, LockConflict
from celery_etcdlock.locking.clock import boot_time

app = Celery("jumps", broker="memory://")
app.conf.update(etcdlock_endpoints=sys.argv[1], etcdlock_ttl=3, etcdlock_timeout=1)
locks = EtcdLocks.from_app(app)

def jump(to):
    before, steady = time.time(), boot_time()
    with open(os.environ["FAKETIME_TIMESTAMP_FILE"], "w") as file:
        file.write(to)
    assert abs(time.time() - before) > 3600, "the wall clock didn't jump"
    assert boot_time() - steady < 5, "the clock of trust did"

with locks.lock("jumps") as lock:
    for to in ("+10d", "-10d", "+0"):
        jump(to)
        ends_at = time.monotonic() + 1.7
        while time.monotonic() < ends_at:
            lock.check()
            assert lock.remaining <= 3
            select.select([], [], [], 0.01)  # libfaketime breaks time.sleep after a jump
        try:
            locks.lock("jumps").__enter__()
        except LockConflict:
            pass
        else:
            raise SystemExit("two holders")
    first = lock.fencing_token
with locks.lock("jumps") as lock:
    assert lock.fencing_token > first
locks.close()
print("held")
"""


def test_the_wall_clock_jumps_while_a_lock_is_held(etcd: EtcdServer, tmp_path: Path) -> None:
    if not LIBRARIES:
        missing("libfaketime")
    stamp = tmp_path / "time"
    stamp.write_text("+0")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(stamp),
        "FAKETIME_NO_CACHE": "1",
        # It can fake these too; no administrator can.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    command = [sys.executable, "-c", HOLDER, etcd.endpoint]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "held\n", done.stderr
