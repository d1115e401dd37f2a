"""The seam over a real python-etcd3 0.12.0, which needs an environment of its own (protobuf below 3.21)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from celery_etcdlock.etcd.client import EtcdClient
from tests.etcd_server import EtcdServer, running_etcd

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
REQUIREMENTS = ["etcd3==0.12.0", "protobuf>=3.20.3,<3.21", "grpcio"]


@pytest.fixture(scope="module")
def etcd3_python() -> Path:
    """An interpreter with etcd3, kept under .tools between runs."""
    directory = ROOT / ".tools" / f"etcd3-{sys.version_info.major}.{sys.version_info.minor}"
    python = directory / "bin" / "python"
    if python.exists() and subprocess.run([python, "-c", "import etcd3"], capture_output=True).returncode == 0:
        return python
    shutil.rmtree(directory, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", directory],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            problem = f"no environment with etcd3 0.12.0: {done.stderr[-1000:]}"
            if os.environ.get("CI"):
                pytest.fail(problem)
            pytest.skip(problem)
    return python


@pytest.mark.timeout(700)
def test_etcd3_client_carries_our_calls(etcd: EtcdServer, etcd3_python: Path, make_api: Any) -> None:
    with running_etcd(extra_args=["--bcrypt-cost=4", "--auth-token-ttl=1"]) as guarded:
        admin = make_api(EtcdClient(guarded.endpoint))
        admin.add_role("root")
        admin.add_user("root", "rootpw", "root")
        admin.enable_auth()
        done = subprocess.run(
            [etcd3_python, HERE / "etcd3_check.py", etcd.endpoint, guarded.endpoint],
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "ok\n"


def test_messages_beside_etcd3(etcd3_python: Path) -> None:
    script = ROOT / "tests" / "unit" / "etcd" / "messages_check.py"
    done = subprocess.run([etcd3_python, script, "etcd3"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok, protobuf 3.20")
