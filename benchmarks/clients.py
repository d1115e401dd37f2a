"""Lock clients as subprocesses, driven over ``peers/line_protocol``."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contenders import Peer
from benchmarks.environments import NotInstalled
from benchmarks.places import ROOT, environment
from benchmarks.servers import Server

__all__ = ["Client", "Clients", "Run", "connect", "connected"]


@dataclass(frozen=True)
class Run:
    """``microseconds`` of each pair or hand-off; ``seconds`` and ``cpu_microseconds`` of all together."""

    microseconds: list[float]
    cpu_microseconds: float
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.microseconds) / self.seconds

    @property
    def cpu_each(self) -> float:
        return self.cpu_microseconds / len(self.microseconds)


class Client:
    """A connected peer: warm, with its session made once."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._log = log
        self.versions = str(self._read()["ready"])

    def run(self, pairs: int) -> Run:
        """Lock and unlock so many times in a row."""
        return self._run(f"run {pairs}")

    def many(self, callers: int, pairs: int) -> Run:
        """The same by so many callers at once, each with a lock of its own."""
        return self._run(f"many {callers} {pairs}")

    def hand_off(self, waiters: int) -> Run:
        """One lock goes from its holder through so many waiters: from each release to the next entry."""
        return self._run(f"handoff {waiters}")

    def distinct(self, callers: int, pairs: int) -> None:
        """So many pairs by each caller, each with a name that was never used before."""
        self._ask(f"distinct {callers} {pairs}")

    def hold(self, locks: int) -> float:
        """Take so many locks and keep them. Returns the seconds that it took."""
        return float(self._ask(f"hold {locks}")["seconds"])

    def _run(self, command: str) -> Run:
        answer = self._ask(command)
        return Run(list(answer["microseconds"]), float(answer["cpu_microseconds"]), float(answer["seconds"]))

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            last = [one for one in self._log.read_text(errors="replace").splitlines() if one.strip()][-1:]
            raise NotInstalled(f"its process ended: {''.join(last)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass
class Clients:
    """Those that could be connected, and why the others couldn't, by name."""

    running: list[Client] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def drop(self, client: Client, reason: Exception) -> None:
        """It can't do what is measured."""
        self.running.remove(client)
        self.absent[client.name] = str(reason)


@contextlib.contextmanager
def connected(bench: Bench, peers: Sequence[Peer], stores: dict[str, Server]) -> Iterator[Clients]:
    """All of the peers whose store is there."""
    clients = Clients()
    with contextlib.ExitStack() as running:
        for peer in peers:
            if peer.store not in stores:
                continue
            bench.say(f"{peer.name}: connecting (the first time it is installed)")
            try:
                command = [*peer.command(), stores[peer.store].endpoint]
                clients.running.append(running.enter_context(connect(peer.name, command, bench.scratch)))
            except NotInstalled as reason:
                clients.absent[peer.name] = str(reason)
        yield clients


@contextlib.contextmanager
def connect(name: str, command: Sequence[str], scratch: Path, extra: dict[str, str] | None = None) -> Iterator[Client]:
    """One client, started by ``command``. Raises ``NotInstalled`` when its process ends."""
    log = scratch / f"{name.replace(' ', '-')}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env=environment(**(extra or {})),
            text=True,
            start_new_session=True,
        )
    try:
        yield Client(name, process, log)
    finally:
        process.kill()
        process.communicate()
