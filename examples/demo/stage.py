"""What the scenes play on: the servers, two workers, the journal, and what is printed."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from examples.demo.evidence import overlaps, tokens_rise
from examples.demo.journal import Journal, Span
from examples.demo.process import Process, wait_until
from examples.demo.servers import Broker, Etcd, clean_environment, start_broker, start_etcd
from examples.demo.style import Style
from examples.demo.timeline import draw

WORKERS = ("alpha", "beta")
SLOTS = 2
WORKER_START_SECONDS = 30
WORKER_STOP_SECONDS = 5


@dataclass(frozen=True)
class Check:
    """A line of the verdict."""

    what: str
    seen: str
    good: bool


class Screen:
    """Prints, with the seconds since the start."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def line(self, text: str = "") -> None:
        print(text, flush=True)

    def title(self, text: str) -> None:
        self.line()
        self.line(self.style.bold(text))

    def step(self, text: str) -> None:
        when = self.style.dim(f"{self.elapsed:5.1f} s")
        first, *rest = textwrap.wrap(text, self.style.width - 9, break_long_words=False, break_on_hyphens=False)
        self.line(f"{when}  {first}")
        for line in rest:
            self.line(" " * 9 + line)

    def remark(self, text: str) -> None:
        """Below a step, wrapped."""
        for line in textwrap.wrap(text, self.style.width - 9, break_long_words=False, break_on_hyphens=False):
            self.line(" " * 9 + line)


@dataclass
class Stage:
    folder: Path
    screen: Screen
    etcd: Etcd
    broker: Broker
    journal: Journal
    with_lock: bool
    workers: dict[str, Process] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    @classmethod
    def set_up(cls, folder: Path, screen: Screen, stack: ExitStack) -> Stage:
        """Start all, and wait until both workers take tasks. What ``stack`` gets ends it all."""
        etcd = start_etcd(folder, stack)
        screen.step(f"etcd is up ({etcd.origin}).")
        broker = start_broker(folder, stack)
        screen.step(f"The broker is up: {broker.origin}.")
        os.environ.update(
            ETCDLOCK_ENDPOINTS=etcd.endpoint,
            DEMO_FOLDER=str(folder),
            DEMO_BROKER=broker.url,
            DEMO_RESULTS=broker.results,
        )
        with_lock = not os.environ.get("DEMO_WITHOUT_LOCK")
        stage = cls(folder, screen, etcd, broker, Journal(folder / "journal"), with_lock)
        for name in WORKERS:
            stage._start_worker(name, stack)
        stack.callback(stage._ask_workers_to_end)
        wait_until(
            lambda: {event["worker"] for event in stage.journal.events() if event["what"] == "ready"} == set(WORKERS),
            WORKER_START_SECONDS,
            "both workers to be ready",
            *stage.processes,
        )
        names = " and ".join(WORKERS)
        screen.step(f"Two Celery workers are ready: {names}, each with {SLOTS} processes.")
        return stage

    def _start_worker(self, name: str, stack: ExitStack) -> None:
        command = [sys.executable, "-m", "celery", "-A", "examples.demo.tasks", "worker", "-l", "INFO"]
        command += ["-n", f"{name}@demo", "-P", "prefork", "-c", str(SLOTS), "-Q", f"celery,{name}"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        kept = {key: os.environ[key] for key in os.environ if key.startswith("ETCDLOCK_")}
        # A killed pool can't remove its temporary files: they go with ours.
        environment = {**clean_environment(), **kept, "PYTHONUNBUFFERED": "1", "TMPDIR": str(self.folder)}
        worker = Process(f"worker {name}", command, self.folder / f"{name}.log", environment)
        stack.callback(worker.stop, WORKER_STOP_SECONDS)
        self.workers[name] = worker

    def _ask_workers_to_end(self) -> None:
        """Before any of them is waited for, so that they end side by side."""
        for worker in self.workers.values():
            worker.ask_to_end()

    @property
    def processes(self) -> list[Process]:
        """All that should be running."""
        servers = [self.etcd.process, self.broker.process]
        return [*(server for server in servers if server is not None), *self.workers.values()]

    def wait(self, probe: Callable[[], bool], seconds: float, what: str) -> None:
        wait_until(probe, seconds, what, *reversed(self.processes))

    def spans(self, key_start: str) -> list[Span]:
        return [span for span in self.journal.spans() if span.key.startswith(key_start)]

    def check(self, what: str, seen: str, good: bool) -> None:
        self.checks.append(Check(what, seen, good))

    def conclude(self, key_start: str, what: str) -> None:
        """Draw a scene's timeline, and check what must hold in all of them."""
        spans = self.spans(key_start)
        self.screen.line()
        for line in draw(spans, WORKERS, self.screen.style):
            self.screen.line(line)
        collisions = overlaps(spans)
        for collision in collisions[:3]:
            self.screen.line(self.screen.style.bad(f"  OVERLAP  {collision}"))
        if len(collisions) > len(collisions[:3]):
            self.screen.line(self.screen.style.bad(f"  ... and {len(collisions) - 3} more"))
        self.check(f"{what}: two bodies of one lock at once", _times(len(collisions)), not collisions)
        if self.with_lock:
            rise = tokens_rise(spans)
            self.check(f"{what}: fencing tokens rise", "strictly" if rise else "NO", rise)


def _times(number: int) -> str:
    return {0: "never", 1: "once"}.get(number, f"{number} times")
