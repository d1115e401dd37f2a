"""The same app with its locks in a Redis: one setting is different."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from celery.exceptions import TaskRevokedError

from celery_etcdlock import EtcdLocks
from tests.integration.workers.conftest import Project
from tests.redis_server import RedisServer


@pytest.fixture
def on_redis(new_project: Callable[..., Project], redis: RedisServer) -> Project:
    project = new_project(redis.url(2))
    project.start_worker("-c", "3")
    return project


def test_conflicts_hand_overs_and_lines(on_redis: Project) -> None:
    module, bodies = on_redis.module, on_redis.bodies
    running = module.single.delay(60.0)
    queued = module.TABLE["until_executed", "skip"].delay("k", 60.0)
    bodies.wait_entered(2)
    assert module.TABLE["until_executed", "skip"].delay("k").id == queued.id
    skipped = module.single.delay()
    with pytest.raises(TaskRevokedError, match=running.id):
        skipped.get(timeout=30)
    with EtcdLocks.from_app(on_redis.app).lock("elsewhere") as lock:
        lock.check()
    bodies.end_all()
    assert running.get(timeout=30) > 0
    assert queued.get(timeout=30) == queued.id
    tokens = [module.single.delay().get(timeout=30) for _ in range(3)]
    assert tokens == sorted(set(tokens))


def test_a_worker_that_dies_frees_its_locks_with_its_lease(
    new_project: Callable[..., Project], redis: RedisServer
) -> None:
    project = new_project(redis.url(2), etcdlock_ttl=3, etcdlock_timeout=2)
    worker = project.start_worker("-c", "1")
    project.module.single.delay(60.0)
    project.bodies.wait_entered()
    worker.group_kill()
    name = f"{project.module.__name__}.single"
    with EtcdLocks.from_app(project.app).lock(name, wait_timeout=20) as lock:
        assert lock.fencing_token > project.bodies.tokens(name)[0]
