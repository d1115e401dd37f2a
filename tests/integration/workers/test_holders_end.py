"""``join`` and ``replace`` when the holder doesn't simply succeed: it dies, is revoked, or is asked to let go."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import TaskRevokedError

from celery_etcdlock import LockLost
from tests.integration.workers.conftest import Project
from tests.waiting import wait_for


@pytest.fixture
def project(new_project: Callable[..., Project]) -> Project:
    return new_project(etcdlock_ttl=2, etcdlock_timeout=1)


def test_a_duplicate_runs_itself_when_the_worker_that_it_joined_died(project: Project) -> None:
    task = project.module.TABLE["while_executing", "join"]
    first = project.start_worker("-c", "1")
    holder = task.delay("k", 60.0)
    project.bodies.wait_entered()
    project.module.plain.delay()
    wait_for(lambda: "app.plain[" in first.text(), "the first worker has all that it may have")
    project.start_worker("-c", "1")
    duplicate = task.delay("k", 0.0, "mine")
    wait_for(lambda: duplicate.state == "RETRY", "the duplicate waits for a result")
    first.group_kill()
    assert duplicate.get(timeout=30) == "mine"
    assert holder.state != "SUCCESS"


def test_a_duplicate_fails_as_the_child_that_it_joined(project: Project) -> None:
    task = project.module.TABLE["until_executed", "join"]
    project.start_worker("-c", "2")
    holder = task.delay("k", 60.0)
    [body] = project.bodies.wait_entered()
    duplicate = task.apply_async(("k", 0.0, "mine"), task_id=f"{project.name}-promised")
    wait_for(lambda: duplicate.state == "RETRY", "the duplicate waits for a result")
    os.kill(body["pid"], signal.SIGKILL)
    for result in (holder, duplicate):
        with pytest.raises(WorkerLostError):
            result.get(timeout=30)
    assert project.bodies.entered() == 1


def test_a_duplicate_of_a_call_that_is_revoked_is_revoked(project: Project) -> None:
    task = project.module.TABLE["until_executed", "join"]
    project.start_worker("-c", "1", environment={"TEST_REMOTE_CONTROL": "yes"})
    holder = task.apply_async(("k",), countdown=600)
    duplicate = task.apply_async(("k",), task_id=f"{project.name}-promised")
    wait_for(lambda: duplicate.state == "RETRY", "the duplicate waits for a result")
    project.app.control.revoke(holder.id, terminate=False)
    wait_for(lambda: project.app.control.inspect(timeout=0.5).revoked(), "the worker knows", 30)
    project.app.backend.mark_as_revoked(holder.id, "revoked")  # as the worker does when the message's time has come
    with pytest.raises(TaskRevokedError, match=f"task {holder.id} .*, which was revoked"):
        duplicate.get(timeout=30)
    assert project.bodies.entered() == 0


def test_a_running_holder_is_interrupted_for_the_newest(project: Project) -> None:
    task = project.module.TABLE["until_executed", "replace"]
    project.start_worker("-c", "2")
    holder = task.delay("k", 60.0)
    project.bodies.wait_entered()
    newest = task.delay("k", 0.0, "newest")
    assert newest.get(timeout=30) == "newest"
    with pytest.raises(LockLost, match=f"task {newest.id}, which replaces it"):
        holder.get(timeout=30)
    assert not project.bodies.overlaps()


@pytest.mark.parametrize(
    ("lifetime", "gate"), [("while_executing", True), ("while_executing", False), ("until_executed", True)]
)
def test_of_several_that_replace_a_running_one_only_the_newest_runs(
    new_project: Callable[..., Project], lifetime: str, gate: bool
) -> None:
    # The holder is told with its next renewal, some nine seconds from its start: when all have come.
    project = new_project(etcdlock_gate=gate)
    task = project.module.TABLE[lifetime, "replace"]
    project.start_worker("-c", "2")
    holder = task.delay("k", 60.0)
    project.bodies.wait_entered()
    older = [task.delay("k", 0.0, "older")]
    wait_for(lambda: older[0].state == "RETRY", "the first duplicate waits")
    older.append(task.delay("k", 0.0, "older"))
    wait_for(lambda: older[1].state == "RETRY", "the second one waits")
    newest = task.delay("k", 0.0, "newest")
    assert newest.get(timeout=40) == "newest"
    for each in older:
        with pytest.raises(TaskRevokedError, match="a newer call took its place in the queue"):
            each.get(timeout=40)
    with pytest.raises(LockLost, match="which replaces it"):
        holder.get(timeout=30)
    assert project.bodies.entered() == 2
    assert not project.bodies.overlaps()
