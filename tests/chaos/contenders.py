"""Who is put to the test: our own tasks and the peers', each with the environment it needs, made once under .tools/."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools"

BUILD_SECONDS = 600


@dataclass(frozen=True)
class Contender:
    """``app`` is the module of its tasks, ``store`` where its locks are: ``etcd`` or ``redis``."""

    name: str
    app: str
    store: str
    python: Callable[[], str]
    packages: tuple[str, ...]
    environment: Callable[[], dict[str, str]] = dict

    def versions(self) -> str:
        code = (
            "import json, sys; from importlib.metadata import version; "
            "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
        )
        command = [self.python(), "-c", code, *self.packages]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return ", ".join(f"{name} {version}" for name, version in found.items())


def _environment(name: str, *packages: str) -> Callable[[], str]:
    def python() -> str:
        directory = TOOLS / f"chaos-{name}"
        complete = directory / "complete"
        if not complete.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True, timeout=BUILD_SECONDS)
            pip = [str(directory / "bin" / "pip"), "install", "--quiet", *packages]
            subprocess.run(pip, check=True, timeout=BUILD_SECONDS)
            complete.touch()
        return str(directory / "bin" / "python")

    return python


def _go_mutex() -> dict[str, str]:
    binary = TOOLS / "chaos-go-mutex"
    TOOLS.mkdir(exist_ok=True)
    source = Path(__file__).with_name("go_mutex")
    subprocess.run(["go", "build", "-o", str(binary), "."], cwd=source, check=True, timeout=BUILD_SECONDS)
    return {"CHAOS_GO_MUTEX": str(binary)}


def _here() -> str:
    return sys.executable


_REDIS_PEERS = _environment("redis-peers", "celery[redis]==5.7.0", "celery-once==3.0.1", "celery-singleton==0.3.1")
_PYTHON_ETCD3 = _environment("python-etcd3", "celery[redis]==5.7.0", "etcd3==0.12.0", "protobuf<3.21")

OURS = Contender("celery-etcdlock", "etcdlock", "etcd", _here, ("celery-etcdlock", "celery"))
PEERS = (
    Contender("celery-once", "once", "redis", _REDIS_PEERS, ("celery-once", "celery", "redis")),
    Contender("celery-singleton", "singleton", "redis", _REDIS_PEERS, ("celery-singleton", "celery", "redis")),
    Contender("cookbook cache lock", "cookbook", "redis", _REDIS_PEERS, ("redis", "celery")),
    Contender("python-etcd3 Lock", "python_etcd3", "etcd", _PYTHON_ETCD3, ("etcd3", "celery", "grpcio")),
    Contender("Go concurrency.Mutex", "go_mutex", "etcd", _here, ("celery",), _go_mutex),
)
