"""Children that come and go while the worker runs, by remote control, by autoscale and by ``celery multi``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.workers.conftest import Project
from tests.integration.workers.etcd_admin import Admin
from tests.integration.workers.worker_process import ROOT, is_gone
from tests.waiting import wait_for

#: So long that nothing in these tests can be waiting for a lease to run out.
TTL_SECONDS = 60


@pytest.fixture
def project(new_project: Callable[..., Project]) -> Project:
    return new_project(etcdlock_ttl=TTL_SECONDS, etcdlock_timeout=2)


def run_in_each_of(project: Project, count: int) -> list[int]:
    """The processes of so many bodies that run at once, of one key each."""
    for number in range(count):
        project.module.per_key.delay(str(number), 60.0)
    return [event["pid"] for event in project.bodies.wait_entered(count)]


@pytest.mark.parametrize("how", ["by remote control", "by autoscale"])
def test_the_lock_of_a_child_that_came_later_is_free_once_it_is_killed(
    project: Project, admin: Admin, how: str
) -> None:
    arguments = ("-c", "1") if how == "by remote control" else ("--autoscale=3,1",)
    environment = {"TEST_REMOTE_CONTROL": "yes", "AUTOSCALE_KEEPALIVE": "1"}
    worker = project.start_worker(*arguments, environment=environment)
    if how == "by remote control":
        [answer] = project.app.control.pool_grow(2, reply=True, timeout=20, limit=1)
        assert "ok" in next(iter(answer.values())), answer
    children = run_in_each_of(project, 3)
    assert len(set(children)) == 3
    for child in children:
        held = len(admin.all_keys())
        os.kill(child, signal.SIGKILL)
        wait_for(lambda child=child: is_gone(child), "the child is gone")
        wait_for(lambda held=held: len(admin.all_keys()) < held, "its lock is free", 10)
    assert admin.all_keys() == []
    project.bodies.end_all()
    assert "Traceback" not in "\n".join(line for line in worker.text().splitlines() if "etcdlock" in line)


def test_a_pool_that_shrinks_takes_no_lock_from_a_body(project: Project, admin: Admin) -> None:
    worker = project.start_worker("--autoscale=3,1", environment={"AUTOSCALE_KEEPALIVE": "1"})
    run_in_each_of(project, 3)
    project.bodies.end_all()
    wait_for(project.bodies.all_ended, "the bodies have ended")
    project.bodies.forget()
    [kept] = run_in_each_of(project, 1)
    wait_for(lambda: "Scaling down" in worker.text(), "the pool shrinks", 30)
    assert len(admin.all_keys()) == 1
    assert not is_gone(kept)
    project.bodies.end_all()
    wait_for(lambda: admin.all_keys() == [], "the lock is free", 10)
    assert [event["lost"] for event in project.bodies.events() if event["event"] == "exit"] == [False]


def test_nodes_of_celery_multi(project: Project, admin: Admin, tmp_path: Path) -> None:
    """Two nodes on one host are two workers; a node that is restarted leaves no lock behind."""

    def multi(verb: str, *arguments: str) -> str:
        files = [f"--pidfile={tmp_path}/%n.pid", f"--logfile={tmp_path}/%n%I.log"]
        command = [sys.executable, "-m", "celery", "-A", project.environment["TEST_MODULE"], "multi", verb]
        ran = subprocess.run(
            [*command, "one@test", "two@test", *files, *arguments],
            cwd=ROOT,
            env={**project.environment, "C_FORCE_ROOT": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def pids() -> list[int]:
        return [int(file.read_text()) for file in sorted(tmp_path.glob("*.pid"))]

    options = ["-l", "INFO", "-c", "1", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    started: list[int] = []
    try:
        multi("start", *options)
        wait_for(lambda: len(pids()) == 2, "both nodes have started", 30)
        started += pids()
        results = [project.module.per_key.delay("same", 0.3) for _ in range(4)]
        results += [project.module.per_key.delay(str(number), 0.3) for number in range(2)]
        for result in results:
            result.get(timeout=60)
        assert project.bodies.overlaps() == []
        assert len({event["pid"] for event in project.bodies.events()}) == 2

        held = project.module.strict.delay(60.0)
        project.bodies.wait_entered(7)
        # A warm shutdown waits for the body.
        project.bodies.end_all()
        multi("stopwait")
        assert isinstance(held.get(timeout=30), int)
        wait_for(lambda: admin.all_keys() == [], "nothing is left", 10)
    finally:
        for pid in {*started, *pids()}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_no_thread_of_ours_runs_when_the_first_children_are_forked(project: Project) -> None:
    """What a thread has locked at that moment, in a library that knows nothing of forks, stays locked in the child."""
    project.start_worker("-c", "3", environment={"TEST_NOTE_THREADS": "yes"})
    forks = [event["threads"] for event in project.bodies.events() if event["event"] == "fork"]
    assert len(forks) == 3
    assert not [name for names in forks for name in names if name.startswith("celery-etcdlock")]
