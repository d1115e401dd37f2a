"""A hundred contenders count to a hundred, in four processes of 25 threads.

Each of them reads a number from a file, adds one and writes it back. Without a lock they overwrite each other's.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from celery import Celery

from celery_etcdlock import EtcdLocks
from examples.support import expect, folder, say

PROCESSES, THREADS = 4, 25
app = Celery("counter")


def add_one(file: Path, with_lock: bool) -> None:
    # They wait in line, in the order in which they came.
    lock = EtcdLocks.from_app(app).lock("counter", wait_timeout=60) if with_lock else nullcontext()
    with lock:
        number = int(file.read_text() or 0)
        time.sleep(0.002)
        file.write_text(str(number + 1))


def contend(file: Path, with_lock: bool) -> None:
    """One process of contenders."""
    with ThreadPoolExecutor(THREADS) as threads:
        for future in [threads.submit(add_one, file, with_lock) for _ in range(THREADS)]:
            future.result()


def count(with_lock: bool) -> int:
    file = folder() / f"counter-{with_lock}"
    file.write_text("0")
    start_fresh = multiprocessing.get_context("spawn")
    processes = [start_fresh.Process(target=contend, args=(file, with_lock)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return int(file.read_text() or 0)


def main() -> None:
    local_waiters = PROCESSES * THREADS
    say(f"Without the lock, {local_waiters} contenders counted to {count(with_lock=False)}.")
    started = time.monotonic()
    counted = count(with_lock=True)
    say(f"With the lock they counted to {counted}, in {time.monotonic() - started:.1f} s.")
    expect(counted == local_waiters, f"the counter is at {local_waiters}")
