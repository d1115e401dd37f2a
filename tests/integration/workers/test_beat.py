"""Locked tasks that a real beat sends: it takes the locks of those whose lock begins with the call."""

from __future__ import annotations

from celery_etcdlock import EtcdLocks
from tests.integration.workers.conftest import Project
from tests.waiting import wait_for


def entered(project: Project, key: str) -> int:
    return sum(event["event"] == "enter" and event["name"] == key for event in project.bodies.events())


def test_runs_never_overlap_and_beat_goes_on(project: Project) -> None:
    at_enqueue = project.module.TABLE["until_executed", "skip"]
    at_run = project.module.TABLE["while_executing", "skip"]
    refused = project.module.TABLE["until_executed", "raise"]
    worker = project.start_worker("-c", "4")
    beat = project.start_beat(
        queued={"task": at_enqueue.name, "schedule": 0.3, "args": ["queued", 60.0]},
        running={"task": at_run.name, "schedule": 0.3, "args": ["running", 60.0]},
        refused={"task": refused.name, "schedule": 0.3, "args": ["refused", 60.0]},
    )
    wait_for(lambda: beat.text().count(f"Task {at_enqueue.name} not published: lock") >= 3, "beat leaves calls out", 30)
    wait_for(lambda: worker.text().count(f"not run: lock '{at_run.name}:running' is held") >= 3, "runs are skipped", 30)
    wait_for(lambda: beat.text().count("LockConflict") >= 3, "beat reports the conflicts of 'raise', and goes on", 30)
    assert [entered(project, key) for key in ("queued", "running", "refused")] == [1, 1, 1]
    assert worker.text().count(f"Task {at_enqueue.name}[") == 1, "no duplicate of it was ever received"
    project.bodies.end_all()
    for key in ("queued", "running", "refused"):
        wait_for(lambda key=key: entered(project, key) >= 3, f"{key}: it runs again, as often as it is due", 30)  # type: ignore[misc]
    beat.stop()
    assert not project.bodies.overlaps()


def test_a_beat_that_died_leaves_the_lock_to_the_message(project: Project) -> None:
    task = project.module.TABLE["until_executed", "skip"]
    beat = project.start_beat(queued={"task": task.name, "schedule": 0.3, "args": ["k", 60.0]})
    name = f"{task.name}:k"
    locks = EtcdLocks.from_app(project.app)
    [key] = wait_for(lambda: locks.holders(name), "beat has sent one", 30)
    wait_for(lambda: "not published: lock" in beat.text(), "it is published, and the next is not", 30)
    beat.group_kill()
    assert key.record is not None
    task_id = key.record.delivery.task_id
    assert task.delay("k").id == task_id
    project.start_worker("-c", "1")
    project.bodies.wait_entered()
    project.bodies.end_all()
    assert project.app.AsyncResult(task_id).get(timeout=30) == task_id
    assert locks.holders(name) == ()
