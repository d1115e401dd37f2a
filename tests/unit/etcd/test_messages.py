from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def test_messages_in_a_fresh_interpreter() -> None:
    done = subprocess.run([sys.executable, HERE / "messages_check.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok")


def test_descriptor_set_is_not_stale() -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is a development tool")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "build_messages.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
