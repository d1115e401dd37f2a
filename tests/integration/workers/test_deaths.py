"""Locks of processes that die in the middle of a task are free at once (rule 10)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Task

from celery_etcdlock import LockConflict, LockLost
from tests.etcd_server import EtcdServer
from tests.integration.workers.conftest import Project
from tests.integration.workers.etcd_admin import Admin
from tests.integration.workers.worker_process import Worker, is_gone
from tests.waiting import wait_for

#: So long that nothing in these tests can be waiting for a lease to run out.
TTL_SECONDS = 60
AT_ONCE_SECONDS = 1.0


@pytest.fixture
def project(new_project: Callable[..., Project]) -> Project:
    return new_project(etcdlock_ttl=TTL_SECONDS, etcdlock_timeout=2)


class Death:
    """One body that runs in a worker, and how long its lock outlives its process."""

    def __init__(self, project: Project, admin: Admin, task: str = "stubborn") -> None:
        self.admin = admin
        self.name = f"{project.module.__name__}.{task}"
        before = project.bodies.entered()
        self.result = getattr(project.module, task).delay(60.0)
        self.pid: int = project.bodies.wait_entered(before + 1)[-1]["pid"]
        assert len(admin.keys(self.name)) == 1

    def seconds_until_free(self, seconds: float = 30.0) -> float:
        """From when the process is gone. Until then the lock must be held."""
        held: list[Any] = []

        def gone() -> bool:
            held.append(self.admin.keys(self.name))
            return is_gone(self.pid)

        wait_for(gone, "the process is gone", seconds)
        gone_at = time.monotonic()
        # The last look may have been after its end.
        assert all(len(keys) == 1 for keys in held[:-1])
        wait_for(lambda: not self.admin.keys(self.name), "the lock is free", 10)
        return time.monotonic() - gone_at


def test_killed_out_of_time_and_revoked(project: Project, admin: Admin) -> None:
    worker = project.start_worker("-c", "1", environment={"TEST_REMOTE_CONTROL": "yes"})

    killed = Death(project, admin)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.seconds_until_free() < AT_ONCE_SECONDS

    # Its finally takes longer than the 0.1 s that Celery leaves to it.
    timed_out = Death(project, admin, "out_of_time")
    assert timed_out.seconds_until_free() < AT_ONCE_SECONDS

    revoked = Death(project, admin)
    project.app.control.revoke(revoked.result.id, terminate=True, signal="SIGKILL")
    assert revoked.seconds_until_free() < AT_ONCE_SECONDS

    # A body that a SIGTERM ends lets go itself, and one that ignores it keeps its lock until it is gone.
    politely = Death(project, admin, "strict")
    project.app.control.revoke(politely.result.id, terminate=True)
    wait_for(lambda: not admin.keys(politely.name), "the lock is free", 10)

    assert isinstance(project.module.strict.delay().get(timeout=30), int)
    assert "which is gone" in worker.text()
    assert "Traceback (most recent call last)" not in _ours(worker)


@pytest.mark.parametrize("how", ["warm", "cold", "soft", "warm, then cold"])
def test_shutdowns(new_project: Callable[..., Project], etcd: EtcdServer, how: str) -> None:
    soft = {"worker_soft_shutdown_timeout": 1.0} if how == "soft" else {}
    project = new_project(etcdlock_ttl=TTL_SECONDS, etcdlock_timeout=2, **soft)
    admin = Admin(project, etcd.endpoint)
    worker = project.start_worker("-c", "1")
    body = Death(project, admin, "strict")
    if how.startswith("warm"):
        worker.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "Warm shutdown" in worker.text(), "the shutdown has begun")
        assert len(admin.keys(body.name)) == 1
    if how == "warm":
        project.bodies.end_all()
    else:
        worker.process.send_signal(signal.SIGQUIT)
    worker.wait_exit()
    wait_for(lambda: is_gone(body.pid), "the process is gone", 10)
    gone_at = time.monotonic()
    wait_for(lambda: not admin.keys(body.name), "the lock is free", 10)
    assert time.monotonic() - gone_at < AT_ONCE_SECONDS
    admin.close()


def test_only_the_process_that_took_a_lock_releases_it(project: Project, admin: Admin) -> None:
    """Rule 10: a body that forks comes to its ``finally`` twice."""
    project.start_worker("-c", "1")
    result = project.module.forks.delay()
    project.bodies.wait_entered()
    assert len(admin.keys(f"{project.module.__name__}.forks_inside")) == 1
    project.bodies.end_all()
    result.get(timeout=30)
    assert admin.keys(f"{project.module.__name__}.forks_inside") == []


def test_a_body_that_hogs_the_interpreter(new_project: Callable[..., Project]) -> None:
    """Its own renewal can't run for three TTLs: in a prefork child the MainProcess renews, else the lock is lost."""
    ttl_seconds = 2
    project = new_project(etcdlock_ttl=ttl_seconds, etcdlock_timeout=1)
    forked = project.start_worker("-P", "prefork", "-c", "2")
    hogging = project.module.hogs.delay(3 * ttl_seconds)
    project.bodies.wait_entered()
    with pytest.raises(LockConflict):
        project.module.hogs.delay(0).get(timeout=30)
    assert hogging.get(timeout=30) > 0
    assert [event["lost"] for event in project.bodies.events() if event["event"] == "exit"] == [False]
    forked.stop()

    project.start_worker("-P", "solo")
    with pytest.raises(LockLost):
        project.module.hogs.delay(3 * ttl_seconds).get(timeout=30)


def _ours(worker: Worker) -> str:
    return "\n".join(line for line in worker.text().splitlines() if "etcdlock" in line)


@pytest.mark.skipif(not hasattr(Task, "retry_on_worker_lost"), reason="from Celery 5.7 on")
def test_the_retry_that_celery_publishes_for_a_dead_child_runs_under_its_lock(project: Project, admin: Admin) -> None:
    project.start_worker("-c", "2")
    task = project.module.retried_when_dead
    result = task.delay(60.0)
    [killed] = project.bodies.wait_entered(1)
    os.kill(killed["pid"], signal.SIGKILL)
    fencing_token = result.get(timeout=30)
    assert fencing_token > killed["token"]
    assert project.bodies.tokens(killed["name"]) == [killed["token"], fencing_token]
    wait_for(lambda: not admin.keys(task.name), "the lock is free", 10)
