"""Clocks that jump or differ free nothing: nothing is measured on a clock that somebody sets. Needs libfaketime."""

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


PRODUCER = """
import sys
from celery import Celery
from celery_etcdlock import EtcdLocks, singleton_task

app = Celery("clocks", broker="memory://")
app.conf.update(etcdlock_endpoints=sys.argv[1], etcdlock_prefix="/clocks/")

@singleton_task(app=app, lock="until_expired", unique_for=50)
def window(): ...

@singleton_task(app=app, lock="until_executed", pending_ttl=50)
def queued(): ...

for task in (window, queued):
    print(task.name, "left out" if getattr(task.delay(), "lock_conflict", None) else "published")
EtcdLocks.from_app(app).close()
"""


def run(script: str, endpoint: str, stamp: Path, time: str) -> str:
    """What ``script`` prints, in a process whose wall clock says ``time``."""
    if not LIBRARIES:
        missing("libfaketime")
    stamp.write_text(time)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(stamp),
        "FAKETIME_NO_CACHE": "1",
        # It can fake these too; no administrator can.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    command = [sys.executable, "-c", script, endpoint]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wall_clock_jumps_while_a_lock_is_held(etcd: EtcdServer, tmp_path: Path) -> None:
    assert run(HOLDER, etcd.endpoint, tmp_path / "time", "+0") == "held\n"


def test_producers_whose_clocks_differ_leave_each_others_locks(etcd: EtcdServer, tmp_path: Path) -> None:
    def produce(time: str) -> list[str]:
        lines = run(PRODUCER, etcd.endpoint, tmp_path / "time", time).splitlines()
        return [line.partition(" ")[2] for line in lines]

    assert produce("+0") == ["published", "published"]
    for time in ("+10m", "+3h", "-10m"):
        assert produce(time) == ["left out", "left out"]
