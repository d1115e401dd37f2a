"""The main job on every pool that Celery has: a real worker, a real broker, a real etcd."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from tests.integration.workers.conftest import Project

POOLS = [
    pytest.param(("-P", "prefork", "-c", "4"), id="prefork"),
    pytest.param(("-P", "threads", "-c", "4"), id="threads"),
    pytest.param(("-P", "gevent", "-c", "4"), id="gevent"),
]
ALL_POOLS = [*POOLS, pytest.param(("-P", "solo"), id="solo")]


def outcome(result: AsyncResult) -> object:
    return result.get(timeout=30, propagate=False)


@pytest.mark.parametrize("pool", POOLS)
def test_duplicates_are_skipped_and_say_why(project: Project, pool: tuple[str, ...]) -> None:
    project.start_worker(*pool)
    first = project.module.single.delay(30.0)
    project.bodies.wait_entered()
    others = [project.module.single.delay(30.0) for _ in range(3)]
    outcomes = [outcome(other) for other in others]
    project.bodies.end_all()
    assert isinstance(first.get(timeout=30), int)
    assert [other.state for other in others] == ["REVOKED"] * 3
    for why in outcomes:
        assert isinstance(why, TaskRevokedError)
        assert f"lock '{project.module.__name__}.single' is held by task {first.id}" in str(why)
    assert project.bodies.entered() == 1


@pytest.mark.parametrize("pool", ALL_POOLS)
def test_retried_duplicates_all_run_one_after_the_other(project: Project, pool: tuple[str, ...]) -> None:
    """Rule 15."""
    project.start_worker(*pool)
    results = [project.module.per_key.delay(f"k{n % 2}", 0.05) for n in range(8)]
    for result in results:
        assert isinstance(outcome(result), int)
    assert project.bodies.entered() == 8
    assert project.bodies.overlaps() == []
    for name in {event["name"] for event in project.bodies.events()}:
        tokens = project.bodies.tokens(name)
        assert len(tokens) == 4
        assert tokens == sorted(set(tokens))


@pytest.mark.parametrize("pool", POOLS)
def test_different_keys_run_side_by_side(project: Project, pool: tuple[str, ...]) -> None:
    project.start_worker(*pool)
    results = [project.module.per_key.delay(f"k{n}", 30.0) for n in range(3)]
    project.bodies.wait_entered(3)
    project.bodies.end_all()
    assert all(isinstance(outcome(result), int) for result in results)


@pytest.mark.parametrize("pool", ALL_POOLS)
def test_the_lock_is_free_when_the_result_can_be_seen(project: Project, pool: tuple[str, ...]) -> None:
    """Rule 14."""
    project.start_worker(*pool)
    for _ in range(10):
        assert isinstance(outcome(project.module.strict.delay()), int)


@pytest.mark.parametrize("pool", ALL_POOLS)
def test_failures_and_retries_release(project: Project, pool: tuple[str, ...]) -> None:
    project.start_worker(*pool)
    for _ in range(2):
        assert isinstance(outcome(project.module.fails.delay()), ValueError)
    assert outcome(project.module.retries.delay(3)) == 3
    assert outcome(project.module.autoretried.delay(str(project.directory / "mark"))) == "done"
    assert project.bodies.overlaps() == []


@pytest.mark.parametrize("pool", ALL_POOLS)
def test_a_direct_call_is_not_taken_for_the_task_around_it(project: Project, pool: tuple[str, ...]) -> None:
    project.start_worker(*pool)
    module = project.module
    result = module.calls_itself_directly.delay()
    assert outcome(result) == f"conflict with {result.id}, I am {result.id}"
    names = [f"{module.__name__}.calls_another_directly", f"{module.__name__}.called_directly"]
    assert outcome(module.calls_another_directly.delay()) == [names[0], names[1], names[0]]


@pytest.mark.parametrize("pool", POOLS)
def test_a_long_task_keeps_its_lock_for_several_ttls(
    new_project: Callable[..., Project], pool: tuple[str, ...]
) -> None:
    project = new_project(etcdlock_ttl=2, etcdlock_timeout=1)
    project.start_worker(*pool)
    first = project.module.strict.delay(5.0)
    project.bodies.wait_entered()
    ends_at = time.monotonic() + 4.0
    while time.monotonic() < ends_at:
        assert "is held by" in str(outcome(project.module.strict.delay()))
    assert isinstance(outcome(first), int)
    assert [event["lost"] for event in project.bodies.events() if event["event"] == "exit"] == [False]


def test_max_tasks_per_child(project: Project) -> None:
    project.start_worker("-P", "prefork", "-c", "1", "--max-tasks-per-child", "1")
    for _ in range(4):
        assert isinstance(outcome(project.module.strict.delay()), int)
    assert len({event["pid"] for event in project.bodies.events()}) == 4


def test_an_eventlet_worker_is_refused(project: Project) -> None:
    worker = project.start_worker("-P", "eventlet", wait=False)
    assert worker.wait_exit() != 0
    assert "celery-etcdlock doesn't support the eventlet pool" in worker.text()
