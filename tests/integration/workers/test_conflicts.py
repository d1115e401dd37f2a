"""What a loser gets, with a real worker and result backend."""

from __future__ import annotations

import time

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError

from celery_etcdlock import EtcdLocks, LockConflict
from tests.integration.workers.conftest import Project
from tests.waiting import wait_for


@pytest.fixture
def busy(project: Project) -> Project:
    """The lock of ``single``, ``strict`` and ``impatient`` is held until ``project.bodies.end_all()``."""
    project.start_worker("-c", "4")
    project.module.single.delay(60.0)
    project.module.strict.delay(60.0)
    project.bodies.wait_entered(2)
    return project


def test_raise_is_a_failure_that_names_the_holder(busy: Project) -> None:
    result = busy.module.strict.delay()
    with pytest.raises(LockConflict, match="is held by task"):
        result.get(timeout=30)
    assert result.state == "FAILURE"


def test_retry_fails_with_the_conflict_when_its_time_is_over(project: Project) -> None:
    worker = project.start_worker("-c", "2")
    project.module.impatient.delay(60.0)
    project.bodies.wait_entered()
    started = time.monotonic()
    result = project.module.impatient.delay()
    with pytest.raises(LockConflict):
        result.get(timeout=30)
    assert time.monotonic() - started >= 1.0
    assert worker.text().count(f"[{result.id}] retry:") >= 1


def test_a_retry_keeps_its_id_and_its_retries(busy: Project) -> None:
    result = busy.module.per_key.delay("a", 60.0)
    busy.bodies.wait_entered(3)
    waiting = busy.module.per_key.delay("a", 0.0)
    deadline = time.monotonic() + 20
    while waiting.state != "RETRY":
        assert time.monotonic() < deadline
    busy.bodies.end_all()
    assert isinstance(result.get(timeout=30), int)
    assert isinstance(waiting.get(timeout=30), int)


def test_a_chain_behind_a_skipped_task_is_revoked(busy: Project) -> None:
    last = chain(busy.module.single.si(), busy.module.plain.si(), busy.module.plain.si())()
    results = [last, last.parent, last.parent.parent]
    for result in results:
        with pytest.raises(TaskRevokedError, match="is held by task"):
            result.get(timeout=30)
    # get() also raises what the first link's result says, a moment before the others' own are stored.
    wait_for(lambda: [result.state for result in results] == ["REVOKED"] * 3, "all links are REVOKED")


def test_a_skipped_task_in_a_group_does_not_hold_up_the_others(busy: Project) -> None:
    results = group(busy.module.plain.si(), busy.module.single.si(), busy.module.plain.si())()
    assert [type(value).__name__ for value in results.get(timeout=30, propagate=False)] == [
        "str",
        "TaskRevokedError",
        "str",
    ]


def test_a_chord_waits_for_a_member_whose_lock_is_held(busy: Project) -> None:
    """Rule 18."""
    result = chord([busy.module.single.si(), busy.module.plain.si()], busy.module.plain.s())()
    deadline = time.monotonic() + 20
    while result.parent.children[0].state != "RETRY":
        assert time.monotonic() < deadline
    busy.bodies.end_all()
    assert result.get(timeout=30) == "plain"


def test_replace_runs_after_the_replaced_task_let_go(project: Project) -> None:
    """Rule 17."""
    project.start_worker("-c", "2")
    assert isinstance(project.module.replaces_itself.delay().get(timeout=30), int)


def test_a_standalone_lock_and_a_task_share_a_name(project: Project) -> None:
    """Rule 18."""
    project.start_worker("-c", "1")
    name = f"{project.module.__name__}.strict"
    with EtcdLocks.from_app(project.app).lock(name) as lock:
        lock.check()
        with pytest.raises(LockConflict, match="held by pid"):
            project.module.strict.delay().get(timeout=30)
    assert project.module.strict.delay().get(timeout=30) > lock.fencing_token


def test_positional_keyword_and_default_arguments_are_one_key(project: Project) -> None:
    project.start_worker("-c", "1")
    module = project.module
    for result in (module.per_key.delay("a"), module.per_key.delay(key="a"), module.per_key.delay("a", 0, note="x")):
        result.get(timeout=30)
    assert len({event["name"] for event in project.bodies.events()}) == 1


def test_a_value_that_makes_no_key_is_a_failure_that_says_so(project: Project) -> None:
    project.start_worker("-c", "1")
    with pytest.raises(Exception, match=r"lock_key .* raised ZeroDivisionError"):
        project.module.bad_key.delay("a").get(timeout=30)
    assert project.bodies.entered() == 0


def test_expires_is_respected_by_a_task_that_comes_back(busy: Project) -> None:
    running = busy.module.per_key.delay("a", 60.0)
    busy.bodies.wait_entered(3)
    result = busy.module.per_key.apply_async(("a",), expires=2)
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=30)
    busy.bodies.end_all()
    running.get(timeout=30)
    assert busy.bodies.entered() == 3


def test_a_worker_that_cannot_join_does_not_start(project: Project) -> None:
    """Rule 18."""
    worker = project.start_worker(wait=False, environment={"TEST_BACKEND": "disabled://"})
    assert worker.wait_exit() != 0
    assert "on_conflict='join' needs the stored result of another run, but the result backend is" in worker.text()
