"""Lock clients as subprocesses, driven over ``peers/line_protocol``, and the building of those that need building.

What a peer needs is made once under ``.tools/``. One that can't be made raises ``NotInstalled``, and becomes a row that
says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.places import ROOT, TOOLS, environment

__all__ = ["OURS", "PEERS", "Client", "NotInstalled", "Peer", "Run", "connected"]

BUILD_SECONDS = 600
GO_MUTEX = ROOT / "benchmarks" / "go_mutex"


class NotInstalled(Exception):
    """A peer's requirements can't be had here; the message says which and why."""


@dataclass(frozen=True)
class Peer:
    """``command`` builds what is missing and returns the command, but for the endpoint."""

    name: str
    command: Callable[[], Sequence[str]]


@dataclass(frozen=True)
class Run:
    microseconds: list[float]
    cpu_microseconds: float


class Client:
    """A connected peer: warm, with its session made once."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log
        self.versions = str(self._read()["ready"])

    def run(self, pairs: int) -> Run:
        """Lock and unlock so many times in a row."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"run {pairs}\n")
        self._process.stdin.flush()
        answer = self._read()
        return Run(list(answer["microseconds"]), float(answer["cpu_microseconds"]))

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended:\n{self._log.read_text(errors='replace')[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def connected(peer: Peer, endpoint: str, scratch: Path) -> Iterator[Client]:
    """Start it and wait until it has connected. Raises ``NotInstalled``."""
    command = [*peer.command(), endpoint]
    log = scratch / f"{peer.name.replace(' ', '-')}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env=environment(),
            text=True,
            start_new_session=True,
        )
    try:
        yield Client(peer.name, process, log)
    finally:
        process.kill()
        process.communicate()


def _ours() -> Sequence[str]:
    return [sys.executable, "-m", "benchmarks.peers.etcdlock"]


def _python_etcd3() -> Sequence[str]:
    directory = TOOLS / "python-etcd3"
    python = directory / "bin" / "python"
    complete = directory / "complete"
    if not complete.exists():
        shutil.rmtree(directory, ignore_errors=True)
        _build("python-etcd3's environment", [_python_for_etcd3(), "-m", "venv", str(directory)])
        packages = ["etcd3==0.12.0", "protobuf<3.21"]
        _build("etcd3==0.12.0", [str(python), "-m", "pip", "install", "--quiet", *packages])
        _build("etcd3==0.12.0", [str(python), "-c", "import etcd3"])
        complete.touch()
    return [str(python), "-m", "benchmarks.peers.python_etcd3"]


def _python_for_etcd3() -> str:
    """Python 3.10 if there is one: the last for which a protobuf below 3.21 has its fast C++ half as a wheel."""
    if sys.version_info[:2] == (3, 10):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for candidate in (shutil.which("python3.10"), *map(str, sorted(pyenv.glob("3.10.*/bin/python")))):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return sys.executable


def _go_mutex() -> Sequence[str]:
    go = shutil.which("go")
    if go is None:
        raise NotInstalled("there is no go on PATH")
    binary = TOOLS / "go-mutex"
    TOOLS.mkdir(exist_ok=True)
    _build("the Go client", [go, "build", "-o", str(binary), "."], cwd=GO_MUTEX)
    return [str(binary)]


def _build(what: str, command: Sequence[str], cwd: Path = ROOT) -> None:
    try:
        subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=BUILD_SECONDS)
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or error.stdout).splitlines() if line.strip()]
        raise NotInstalled(f"{what}: {lines[-1].strip() if lines else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{what}: {error}") from error


OURS = Peer("celery-etcdlock", _ours)
PEERS = (Peer("python-etcd3 Lock", _python_etcd3), Peer("Go concurrency.Mutex", _go_mutex))
