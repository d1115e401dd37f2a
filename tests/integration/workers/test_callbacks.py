"""``link`` and ``link_error`` of a locked task: who is called for the one that runs, and for its duplicate."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from celery_etcdlock import LockConflict
from tests.integration.workers.conftest import Project
from tests.waiting import wait_for


class Callbacks:
    """The project, and who was called back."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.task = project.module.TABLE

    def of(self, label: str) -> dict[str, Any]:
        follows = self.project.module.follows
        return {"link": follows.s(f"{label} link"), "link_error": follows.s(f"{label} link_error")}

    def called(self) -> dict[str, Any]:
        events = [event for event in self.project.bodies.events() if event["event"] == "follows"]
        labels = [event["label"] for event in events]
        assert len(labels) == len(set(labels)), f"one of them was called twice: {labels}"
        return {event["label"]: event["given"] for event in events}

    def wait_called(self, *labels: str) -> dict[str, Any]:
        wait_for(lambda: set(labels) <= set(self.called()), f"called back: {labels}", 30)
        return self.called()

    def hold(self, task: Any, **arguments: Any) -> Any:
        before = self.project.bodies.entered()
        result = task.apply_async(("k", 60.0), arguments, **self.of("holder"))
        self.project.bodies.wait_entered(before + 1)
        return result


@pytest.fixture
def callbacks(working: Project) -> Callbacks:
    return Callbacks(working)


@pytest.mark.parametrize("lifetime", ["while_executing", "until_executed"])
def test_a_skipped_duplicate_calls_nobody(callbacks: Callbacks, lifetime: str) -> None:
    task = callbacks.task[lifetime, "skip"]
    holder = callbacks.hold(task)
    duplicate = task.apply_async(("k",), **callbacks.of("duplicate"))
    if lifetime == "while_executing":
        with pytest.raises(TaskRevokedError, match=holder.id):
            duplicate.get(timeout=30)
    else:
        assert duplicate.id == holder.id
    callbacks.project.bodies.end_all()
    assert holder.get(timeout=30) == holder.id
    assert callbacks.wait_called("holder link") == {"holder link": holder.id}


def test_a_refused_duplicate_calls_its_link_error(callbacks: Callbacks) -> None:
    task = callbacks.task["while_executing", "raise"]
    holder = callbacks.hold(task, fail=True)
    duplicate = task.apply_async(("k",), **callbacks.of("duplicate"))
    with pytest.raises(LockConflict):
        duplicate.get(timeout=30)
    assert callbacks.wait_called("duplicate link_error") == {"duplicate link_error": duplicate.id}
    callbacks.project.bodies.end_all()
    callbacks.wait_called("holder link_error")
    assert callbacks.called() == {"duplicate link_error": duplicate.id, "holder link_error": holder.id}


@pytest.mark.parametrize("lifetime", ["while_executing", "until_executed", "until_executing"])
def test_a_joined_duplicate_calls_its_own_with_the_holder_s_value(callbacks: Callbacks, lifetime: str) -> None:
    task = callbacks.task[lifetime, "join"]
    if lifetime == "until_executing":
        holder = task.apply_async(("k",), countdown=2, **callbacks.of("holder"))
    else:
        holder = callbacks.hold(task)
    duplicate = task.apply_async(("k",), **callbacks.of("duplicate"))
    if lifetime != "until_executing":
        wait_for(lambda: duplicate.state == "RETRY", "the duplicate has met the holder")
    callbacks.project.bodies.end_all()
    assert duplicate.get(timeout=30) == holder.get(timeout=30) == holder.id
    called = callbacks.wait_called("holder link", "duplicate link")
    assert called == {"holder link": holder.id, "duplicate link": holder.id}


@pytest.mark.parametrize("lifetime", ["while_executing", "until_executed"])
def test_a_joined_duplicate_of_a_failure_calls_its_own_link_error(callbacks: Callbacks, lifetime: str) -> None:
    task = callbacks.task[lifetime, "join"]
    holder = callbacks.hold(task, fail=True)
    duplicate = task.apply_async(("k",), **callbacks.of("duplicate"))
    wait_for(lambda: duplicate.state == "RETRY", "the duplicate has met the holder")
    callbacks.project.bodies.end_all()
    with pytest.raises(ValueError, match="on purpose"):
        duplicate.get(timeout=30)
    called = callbacks.wait_called("holder link_error", "duplicate link_error")
    assert called == {"holder link_error": holder.id, "duplicate link_error": duplicate.id}


@pytest.mark.parametrize("policy", ["retry", "wait", "replace"])
def test_one_that_runs_later_calls_its_own(callbacks: Callbacks, policy: str) -> None:
    task = callbacks.task["while_executing", policy]
    holder = callbacks.hold(task)
    duplicate = task.apply_async(("k", 0.0, "newest"), **callbacks.of("duplicate"))
    wait_for(lambda: duplicate.state == "RETRY", "the duplicate has come back once")
    callbacks.project.bodies.end_all()
    assert duplicate.get(timeout=30) == "newest"
    called = callbacks.wait_called("duplicate link")
    assert called["duplicate link"] == "newest"
    assert "duplicate link_error" not in called
    assert holder.id
