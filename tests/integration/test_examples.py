"""Every example as a user runs it. Without a lock that all processes share they must say no."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.__main__ import NAMES

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ETCDLOCK_", "CELERY_"))}
    return subprocess.run(
        [sys.executable, "-m", "examples", name],
        cwd=ROOT,
        env={**environment, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.timeout(150)
@pytest.mark.parametrize("name", NAMES)
def test_example(name: str) -> None:
    done = run(name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "  ok  " in done.stdout
    assert "  NO  " not in done.stdout


@pytest.mark.parametrize("name", ["counter", "accounts"])
def test_an_example_without_shared_locks_sees_it(name: str) -> None:
    done = run(name, ETCDLOCK_ENDPOINTS="memory://")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "  NO  " in done.stdout


def test_the_list_names_each() -> None:
    done = subprocess.run([sys.executable, "-m", "examples"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in NAMES)
