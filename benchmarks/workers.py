"""A real ``celery worker`` of any pool, a Redis broker and Redis results, and a driver for it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

from celery import Celery
from redis import Redis

from benchmarks.places import environment
from benchmarks.processes import Process
from benchmarks.servers import Server

__all__ = ["Worker", "running_worker", "surroundings"]

IDLE_QUEUE = "bench-idle"
STALL_SECONDS = 60.0
START_POLL_SECONDS = 0.001
POLL_SECONDS = 0.005


class Worker:
    """The worker consumes only the queues that it is told to: so messages can wait in one until the clock starts."""

    def __init__(self, process: Process, redis: Server, name: str) -> None:
        self._process = process
        self._name = name
        self._app = driver_app(redis)
        host, _, port = redis.endpoint.rpartition(":")
        self._queues = Redis(host=host, port=int(port), db=0)
        self._results = Redis(host=host, port=int(port), db=1)
        self._rounds = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        control = self._app.control
        self._process.wait_until(lambda: bool(control.ping(destination=[self._name], timeout=0.5)))

    def ask_to_stop(self) -> None:
        self._process.ask_to_stop()

    def tasks_a_second(self, task: str, count: int) -> float:
        """Put so many messages in a queue, then let the worker at it; until the last result is stored.

        Raises ``RuntimeError`` when the worker stalls, or a task's result isn't SUCCESS.
        """
        self._rounds += 1
        queue = f"{self._name}-{self._rounds}"  # a fresh one: the worker may still be polling the last round's
        self._results.flushdb()
        with self._app.producer_or_acquire() as producer:
            for number in range(count):
                self._app.send_task(task, args=(number,), queue=queue, producer=producer)
        self._app.control.add_consumer(queue, destination=[self._name], reply=True)
        self._wait(START_POLL_SECONDS, lambda: self._queues.llen(queue) != count)
        started = perf_counter()
        self._wait(POLL_SECONDS, lambda: self._results.dbsize() >= count)
        seconds = perf_counter() - started
        self._app.control.cancel_consumer(queue, destination=[self._name], reply=True)
        stored: Any = self._results.mget(self._results.keys())
        failed = [result for result in stored if b'"SUCCESS"' not in (result or b"")]
        if failed:
            raise RuntimeError(f"{len(failed)} of {count} {task} tasks didn't succeed; one result: {failed[0]!r}")
        return count / seconds

    def call(self, task: str, *arguments: object) -> Any:
        """Run one task and return its result."""
        result = self._app.send_task(task, args=arguments, queue=IDLE_QUEUE)
        self._wait(POLL_SECONDS, lambda: self._results.exists(f"celery-task-meta-{result.id}"))
        meta = self._app.backend.get_task_meta(result.id)
        if meta["status"] != "SUCCESS":
            raise RuntimeError(f"task {task} is {meta['status']}: {meta['result']!r}")
        return meta["result"]

    def _wait(self, poll_seconds: float, done: Any) -> None:
        give_up_at = monotonic() + STALL_SECONDS
        while not done():
            self._process.check()
            if monotonic() > give_up_at:
                raise RuntimeError(f"the worker stalls:\n{self._process.log_tail()}")
            sleep(poll_seconds)


def driver_app(redis: Server) -> Celery:
    """Sends without subscribing to each result, which would make the worker's results dearer."""
    app = Celery("bench_driver", set_as_current=False, broker=_url(redis, 0), backend=_url(redis, 1))
    app.backend.on_task_call = lambda *_: None  # type: ignore[method-assign]
    return app


def surroundings(redis: Server, etcd: Server, locks: Server | None = None) -> dict[str, str]:
    """Where an app of ``worker_apps`` finds its servers: ``locks`` is the Redis of those that lock there."""
    found = {"BENCH_BROKER": _url(redis, 0), "BENCH_RESULTS": _url(redis, 1), "BENCH_ETCD": etcd.endpoint}
    return found | {"BENCH_LOCKS": _url(locks or redis, 2)}


@contextlib.contextmanager
def running_worker(
    module: str,
    concurrency: int,
    redis: Server,
    etcd: Server,
    scratch: Path,
    *,
    pool: str = "prefork",
    python: str = sys.executable,
    locks: Server | None = None,
) -> Iterator[Worker]:
    """``celery -A benchmarks.worker_apps.MODULE worker -c CONCURRENCY -P POOL``, starting: ``wait_ready`` next."""
    name = f"bench-{os.getpid()}-{module}@localhost"
    command = [python, "-m", "celery", "-A", f"benchmarks.worker_apps.{module}", "worker"]
    command += ["-c", str(concurrency), "-P", pool, "-Q", IDLE_QUEUE, "-n", name, "-l", "WARNING"]
    extra = environment(**surroundings(redis, etcd, locks))
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        extra["C_FORCE_ROOT"] = "1"
    with Process("celery worker", command, scratch / f"worker-{module}-{pool}.log", extra) as process:
        yield Worker(process, redis, name)


def _url(redis: Server, database: int) -> str:
    return f"redis://{redis.endpoint}/{database}"
