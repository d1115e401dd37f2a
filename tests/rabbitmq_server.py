"""A real RabbitMQ for tests: a node of its own with its own name service, ended by its own handles."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.etcd_server import free_ports

START_SECONDS = 60.0
#: A start that loses the race for a port is repeated with others.
STARTS = 3
#: Debian's wrapper on PATH wants to be the rabbitmq user; the script beside the server runs as anybody.
SCRIPTS = ("/usr/lib/rabbitmq/bin/rabbitmq-server",)


def rabbitmq_binary() -> str | None:
    for candidate in SCRIPTS:
        if os.path.exists(candidate) and shutil.which("epmd"):
            return candidate
    return None


class RabbitServer:
    """One RabbitMQ node."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._directory = Path(tempfile.mkdtemp(prefix="rabbitmq-test-"))
        self.port = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> RabbitServer:
        for _ in range(STARTS):
            if self._start():
                return self
            self._end_processes()
        log = (self._directory / "output").read_text(errors="replace")
        self.stop()
        raise RuntimeError(f"rabbitmq-server didn't start:\n{log[-3000:]}")

    def _start(self) -> bool:
        self.port, distribution, names = free_ports(3)
        environment = {
            **os.environ,
            "HOME": str(self._directory),
            "ERL_EPMD_PORT": str(names),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(self._directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._directory / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._directory / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(self._directory / "none"),
        }
        (self._directory / "plugins").write_text("[].")
        self._spawn(["epmd", "-address", "127.0.0.1", "-port", str(names)], environment)
        self._spawn([self._binary], environment)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._processes[-1].poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _spawn(self, command: list[str], environment: dict[str, str]) -> None:
        with (self._directory / "output").open("ab") as output:
            self._processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return len(connection.recv(8)) > 0
        except OSError:
            return False

    def stop(self) -> None:
        self._end_processes()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _end_processes(self) -> None:
        for process in reversed(self._processes):
            # The node is a child of the script, in the group that we made for it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()
