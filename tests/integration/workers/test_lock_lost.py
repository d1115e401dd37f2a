"""A lock that is lost while its task runs: the task is interrupted, on every pool, or knows at least."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from celery.result import AsyncResult

from celery_etcdlock import LockLost
from tests.etcd_server import EtcdServer
from tests.integration.workers.conftest import Project
from tests.integration.workers.etcd_admin import Admin
from tests.waiting import wait_for

TTL_SECONDS = 2

POOLS = [
    pytest.param(("-P", "prefork", "-c", "2"), id="prefork"),
    pytest.param(("-P", "threads", "-c", "2"), id="threads"),
    pytest.param(("-P", "gevent", "-c", "2"), id="gevent"),
    pytest.param(("-P", "solo"), id="solo"),
]


@pytest.fixture
def project(new_project: Callable[..., Project]) -> Project:
    return new_project(etcdlock_ttl=TTL_SECONDS, etcdlock_timeout=1)


def outcome(result: AsyncResult) -> object:
    return result.get(timeout=30, propagate=False)


def name_of(project: Project, task: str) -> str:
    return f"{project.module.__name__}.{task}"


@pytest.mark.parametrize("pool", POOLS)
def test_the_task_is_interrupted_and_failed_or_retried_or_only_told(
    project: Project, admin: Admin, pool: tuple[str, ...]
) -> None:
    worker = project.start_worker(*pool)
    module = project.module

    failed = module.strict.delay(60.0)
    project.bodies.wait_entered(1)
    admin.delete_keys(name_of(project, "strict"))
    why = outcome(failed)
    assert isinstance(why, LockLost)
    assert "its key was deleted" in str(why)

    retried = module.retried_when_lost.delay(60.0)
    project.bodies.wait_entered(2)
    admin.revoke_lease_of(name_of(project, "retried_when_lost"))
    assert isinstance(outcome(retried), int)

    told = module.flagged.delay(TTL_SECONDS * 1.5)
    project.bodies.wait_entered(4)
    admin.revoke_lease_of(name_of(project, "flagged"))
    assert outcome(told) is True

    # The pool's process, thread or hub is as good as before.
    assert isinstance(outcome(module.strict.delay()), int)
    assert [event["lost"] for event in project.bodies.events() if event["event"] == "exit"] == [
        True, True, False, True, False,
    ]  # fmt: skip
    assert worker.text().count("is lost: ") >= 3
    assert worker.text().count("Traceback") == 1


def test_an_etcd_that_stops_answering_interrupts_by_the_deadline(new_project: Callable[..., Project]) -> None:
    with EtcdServer(fsync=False) as server:
        project = new_project(server.endpoint, etcdlock_ttl=TTL_SECONDS, etcdlock_timeout=1)
        project.start_worker("-P", "prefork", "-c", "1")
        result = project.module.strict.delay(60.0)
        project.bodies.wait_entered()
        server.pause()
        paused_at = time.monotonic()
        try:
            wait_for(lambda: len(project.bodies.events()) == 2, "the body has ended")
        finally:
            server.resume()
        # The last renewal was sent before the pause, so etcd keeps the lock for a TTL from then, at most.
        assert project.bodies.events()[-1]["at"] - paused_at < TTL_SECONDS
        assert isinstance(outcome(result), LockLost)


def test_a_sleep_in_the_main_thread_is_interrupted(project: Project, admin: Admin) -> None:
    project.start_worker("-P", "prefork", "-c", "1")
    result = project.module.sleeps_in_one_go.delay(60.0)
    project.bodies.wait_entered()
    admin.delete_keys(name_of(project, "sleeps_in_one_go"))
    started = time.monotonic()
    assert isinstance(outcome(result), LockLost)
    assert time.monotonic() - started < TTL_SECONDS
