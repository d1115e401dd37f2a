"""Without an engine, a permission or an image: one line that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException

from tests.e2e import engine

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


@pytest.mark.parametrize("host", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1"])
def test_no_engine(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    why = engine.why_no_docker()
    assert why == "no Docker engine answers: start it (scripts/docker_engine.sh, or systemctl start docker)"


def test_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise DockerException(
            "Error while fetching server API version: ('Connection aborted.', PermissionError(13, 'Permission denied'))"
        )

    monkeypatch.setattr(docker, "from_env", refuse)
    assert engine.why_no_docker() == (
        "no permission on Docker's socket: add yourself to the group docker, or run as root"
    )


def test_a_missing_image(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.why_no_docker() is None
    monkeypatch.setattr(engine, "REDIS_IMAGE", "celery-etcdlock-nothing:here")
    why = engine.why_no_docker()
    assert why == ("the image celery-etcdlock-nothing:here is missing: `make e2e` gets it, or scripts/docker_images.sh")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_only_root_can_start_an_engine(tmp_path: Path) -> None:
    script = tmp_path / "docker_engine.sh"
    shutil.copy(ROOT / "scripts" / "docker_engine.sh", script)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    run = subprocess.run(
        ["bash", str(script), str(tmp_path / "pid")],
        env={"PATH": os.environ["PATH"], "DOCKER_HOST": "unix:///nowhere/docker.sock"},
        user=NOBODY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("no Docker engine can run here: none answers")
    assert "only root can start one" in line
