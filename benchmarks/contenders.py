"""The lock clients that are measured side by side, and how to start each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.environments import compiled_go, python_310, python_environment
from benchmarks.places import ROOT

__all__ = ["ETCD_PEERS", "ETCD_PYTHON_PEERS", "GO", "OURS", "OURS_GEVENT", "OURS_GRPCIO", "REDIS", "REDIS_AOF", "Peer"]


@dataclass(frozen=True)
class Peer:
    """``command`` builds what is missing and returns the command, but for the endpoint of ``store``.

    ``store`` is ``etcd``, ``redis`` (without persistence) or ``redis-aof`` (each write is synced to disk).
    """

    name: str
    command: Callable[[], Sequence[str]]
    store: str = "etcd"


def _program(module: str) -> Callable[[], Sequence[str]]:
    return lambda: [sys.executable, "-m", f"benchmarks.peers.{module}"]


def _program_of_its_own(
    module: str,
    name: str,
    packages: Sequence[str],
    imports: str,
    interpreter: Callable[[], str] = lambda: sys.executable,
) -> Callable[[], Sequence[str]]:
    return lambda: [
        python_environment(name, packages, imports=imports, interpreter=interpreter),
        "-m",
        f"benchmarks.peers.{module}",
    ]


def _go() -> Sequence[str]:
    return [compiled_go(ROOT / "benchmarks" / "go_mutex", "go-mutex")]


_redis_py = _program_of_its_own("redis_py", "redis-py", ["redis==8.1.0"], "redis.lock")

OURS = Peer("celery-etcdlock", _program("etcdlock"))
OURS_GEVENT = Peer("celery-etcdlock, greenlets", _program("etcdlock_gevent"))
OURS_GRPCIO = Peer("celery-etcdlock over grpcio", _program("etcdlock_grpcio"))
GO = Peer("Go concurrency.Mutex", _go)
REDIS_AOF = Peer("redis-py Lock, AOF always", _redis_py, "redis-aof")
REDIS = Peer("redis-py Lock, no persistence", _redis_py, "redis")
ETCD_PYTHON_PEERS = (
    Peer(
        "python-etcd3 Lock",
        _program_of_its_own("python_etcd3", "python-etcd3", ["etcd3==0.12.0", "protobuf<3.21"], "etcd3", python_310),
    ),
    Peer("etcd3gw Lock", _program_of_its_own("etcd3gw_lock", "etcd3gw", ["etcd3gw==2.7.0"], "etcd3gw")),
    Peer("tooz etcd3gw", _program_of_its_own("tooz_lock", "tooz", ["tooz[etcd3gw]==9.1.0"], "tooz.drivers.etcd3gw")),
)
ETCD_PEERS = (GO, *ETCD_PYTHON_PEERS)
