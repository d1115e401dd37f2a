"""What every example needs and none is about: servers, workers, a note of who was inside a lock, and a verdict.

An etcd and a Redis are started for the time of an example, unless the environment names others: ``ETCDLOCK_ENDPOINTS``
(celery-etcdlock's own variable) and ``CELERY_BROKER_URL`` with ``CELERY_RESULT_BACKEND`` (Celery's own).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from examples.demo.evidence import most_at_once, overlaps
from examples.demo.journal import Journal, Span
from examples.demo.process import DemoFailed, Process, wait_until
from examples.demo.servers import start_broker, start_etcd

SECONDS = 60.0
_FOLDER = "EXAMPLE_FOLDER"


class NotAsPromised(Exception):
    """An example saw something that it shouldn't have."""


@contextmanager
def servers() -> Iterator[None]:
    """An etcd, a Redis and a scratch folder for the block, known to all processes by the environment."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celery-etcdlock-example-")))
        os.environ[_FOLDER] = str(scratch)
        if "ETCDLOCK_ENDPOINTS" not in os.environ:
            os.environ["ETCDLOCK_ENDPOINTS"] = start_etcd(scratch, stack).endpoint
        if "CELERY_BROKER_URL" not in os.environ:
            broker = start_broker(scratch, stack)
            if broker.process is None:
                raise DemoFailed("there is no Redis: apt-get install redis-server, or name one by CELERY_BROKER_URL")
            os.environ.update(CELERY_BROKER_URL=broker.url, CELERY_RESULT_BACKEND=broker.results)
        yield


def folder() -> Path:
    return Path(os.environ[_FOLDER])


@contextmanager
def workers(module: str, *arguments: str, count: int = 2) -> Iterator[list[Process]]:
    """``count`` Celery workers for the app in ``module``, ready."""
    with ExitStack() as stack:
        started = []
        for number in range(count):
            name = f"worker{number}"
            command = [sys.executable, "-m", "celery", "-A", module, "worker", "-n", f"{name}@example", "-l", "INFO"]
            command += ["--without-gossip", "--without-mingle", "--without-heartbeat", *arguments]
            worker = Process(name, command, folder() / f"{name}.log", os.environ)
            stack.callback(worker.stop, 5)
            started.append(worker)
        stack.callback(lambda: [worker.ask_to_end() for worker in started])
        for worker in started:
            wait_until(lambda worker=worker: "ready." in worker.log.read_text(), SECONDS, "the worker", worker)  # type: ignore[misc]
        yield started


@contextmanager
def beat(module: str) -> Iterator[None]:
    """Celery's beat for the app in ``module``."""
    command = [sys.executable, "-m", "celery", "-A", module, "beat", "-s", str(folder() / "schedule"), "--pidfile="]
    process = Process("beat", command, folder() / "beat.log", os.environ)
    try:
        yield
    finally:
        process.stop(5)


@contextmanager
def inside(key: str, call: str = "") -> Iterator[None]:
    """Note down that this process is inside ``key`` during the block."""
    journal = Journal(folder() / "journal")
    facts = {"key": key, "worker": "", "call": call or f"{os.getpid()}-{time.monotonic()}", "token": 0}
    journal.note("enter", **facts, pid=os.getpid())
    try:
        yield
    finally:
        journal.note("exit", **facts, pid=os.getpid())


def spans(prefix: str = "") -> list[Span]:
    """Who was inside when, of the keys that begin with ``prefix``."""
    return [span for span in Journal(folder() / "journal").spans() if span.key.startswith(prefix)]


def at_once(prefix: str = "") -> int:
    return most_at_once(spans(prefix))


def wait_for(probe: Callable[[], bool], what: str) -> None:
    wait_until(probe, SECONDS, what)


def say(text: str) -> None:
    print(text, flush=True)


def expect(good: bool, text: str) -> None:
    """A line of the verdict. Raises `NotAsPromised` unless ``good``."""
    say(f"  {'ok' if good else 'NO'}  {text}")
    if not good:
        raise NotAsPromised(text)


def expect_no_overlap(prefix: str = "") -> None:
    found = overlaps(spans(prefix))
    expect(not found, f"never two at once: {found[0]}" if found else "never two at once")
