"""The main job over RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.integration.workers.conftest import Project
from tests.rabbitmq_server import RabbitServer


@pytest.fixture
def project(new_project: Callable[..., Project], rabbitmq: RabbitServer) -> Project:
    return new_project(broker=rabbitmq.url)


def test_duplicates_are_skipped_and_retried_ones_all_run(project: Project) -> None:
    project.start_worker("-c", "4")
    first = project.module.single.delay(60.0)
    project.bodies.wait_entered()
    skipped = project.module.single.delay()
    assert "is held by task" in str(skipped.get(timeout=30, propagate=False))
    retried = [project.module.per_key.delay("a", 0.05) for _ in range(5)]
    for result in retried:
        assert isinstance(result.get(timeout=60), int)
    project.bodies.end_all()
    first.get(timeout=30)
    assert project.bodies.entered() == 6
    assert project.bodies.overlaps() == []


def test_a_retry_comes_through_with_its_id(project: Project) -> None:
    project.start_worker("-c", "2")
    assert project.module.retries.delay(3).get(timeout=60) == 3
