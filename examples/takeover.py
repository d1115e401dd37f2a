"""A second window waits until the first one dies, and takes over.

Run ``python -m examples.takeover`` in two terminals, with ETCDLOCK_ENDPOINTS set to your etcd's address, and kill the
one that works (Ctrl-C, or kill -9). ``python -m examples takeover`` does the same by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import count

from celery import Celery

from celery_etcdlock import CurrentLock, EtcdLocks, LockConflict
from examples.support import expect, say

NAME = "the one that works"
TTL_SECONDS = 3
A_DAY = 86400
app = Celery("takeover")


def window() -> None:
    """Work if nobody else does; else wait in line, woken by etcd as soon as the lock is free."""
    locks = EtcdLocks.from_app(app)
    try:
        with locks.lock(NAME, lock_ttl=TTL_SECONDS) as lock:
            work(lock)
    except LockConflict as conflict:
        say(f"pid {os.getpid()} waits: {conflict}")
        with locks.lock(NAME, lock_ttl=TTL_SECONDS, wait_timeout=A_DAY) as lock:
            work(lock)


def work(lock: CurrentLock) -> None:
    say(f"pid {os.getpid()} works, with fencing token {lock.fencing_token}")
    for second in count():
        lock.check()
        say(f"pid {os.getpid()} worked for {second} s")
        time.sleep(1)


def main() -> None:
    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "examples.takeover"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def read_until(process: subprocess.Popen[str], text: str) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            say(f"  | {line.rstrip()}")
            if text in line:
                return
        expect(False, f"a window said {text!r}")

    first = start()
    second = None
    try:
        read_until(first, "worked for 0 s")
        second = start()
        read_until(second, "waits")
        time.sleep(1)
        first.send_signal(signal.SIGKILL)
        first.wait()
        killed_at = time.monotonic()
        say("kill -9 of the first window")
        read_until(second, "works, with fencing token")
        seconds = time.monotonic() - killed_at
        # A lease is checked for its end every half second, and a new etcd leader would lengthen it.
        expect(seconds < TTL_SECONDS + 3, f"the second took over {seconds:.1f} s after (TTL {TTL_SECONDS} s)")
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()


if __name__ == "__main__":
    try:
        window()
    except KeyboardInterrupt:
        say(f"pid {os.getpid()} ends")
