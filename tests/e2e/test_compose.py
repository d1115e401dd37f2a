"""``docker-compose.yml`` as a user runs it: up, the demo, beat and Flower, down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from tests.e2e import engine
from tests.e2e.conftest import ROOT
from tests.waiting import wait_for

Compose = Callable[..., str]


def compose_command() -> list[str]:
    """v2 where it is there, else 1.29."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.fail(
        "there is no docker-compose: apt-get install docker-compose, or Docker's compose plug-in", pytrace=False
    )


@pytest.fixture(params=["redis", "rabbitmq"])
def compose(request: pytest.FixtureRequest) -> Iterator[Compose]:
    """Runs compose on a project of this test alone, whose ports are whatever is free."""
    files = ["-f", "docker-compose.yml"]
    if request.param == "rabbitmq":
        files += ["-f", "docker-compose.rabbitmq.yml"]
    command = [*compose_command(), "-p", f"etcdlock-e2e-{os.getpid()}", *files]
    environment = {
        **os.environ,
        "PYTHON_IMAGE": engine.PYTHON_IMAGE,
        "ETCD_IMAGE": engine.etcd_image(),
        "REDIS_IMAGE": engine.REDIS_IMAGE,
        "RABBITMQ_IMAGE": engine.RABBITMQ_IMAGE,
        **dict.fromkeys(("ETCD_PORT", "REDIS_PORT", "FLOWER_PORT", "RABBITMQ_PORT"), "0"),
    }
    if command[0] == "docker-compose":
        environment["DOCKER_BUILDKIT"] = "0"

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    yield run
    run("down", "-v", "-t", "2")


def test_the_stack_comes_up_and_never_runs_two_at_once(compose: Compose) -> None:
    compose("up", "-d", "--build")
    output = compose("run", "--rm", "demo")
    assert "rebuild_index: 9 REVOKED, 1 SUCCESS" in output
    assert "sync: 10 SUCCESS" in output
    assert "is held by task" in output
    assert "Never two at once." in output
    wait_for(
        lambda: "not run: lock 'report' is held by" in compose("logs", "alpha", "beta"), "beat's job is skipped once"
    )
    flower = compose("port", "flower", "5555").strip()
    assert set(wait_for(lambda: flower_workers(flower), "Flower knows both workers")) == {"celery@alpha", "celery@beta"}


def flower_workers(address: str) -> list[str]:
    try:
        with urllib.request.urlopen(f"http://{address}/workers?json=1", timeout=5) as answer:
            workers = [worker["hostname"] for worker in json.load(answer)["data"]]
    except OSError:
        return []
    return workers if len(workers) == 2 else []
