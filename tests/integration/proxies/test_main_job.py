"""The main job, a real worker whose duplicates are skipped and wait their turn, with etcd behind each proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from tests.integration.proxies.conftest import KINDS, StartProxy
from tests.integration.workers.conftest import Project
from tests.redis_server import RedisServer


@pytest.fixture
def new_project(redis: RedisServer, tmp_path: Path) -> Iterator[Callable[..., Project]]:
    projects: list[Project] = []

    def make(endpoint: str, **settings: object) -> Project:
        projects.append(Project(redis.url(0), redis.url(1), endpoint, tmp_path, **settings))
        return projects[-1]

    yield make
    for project in projects:
        project.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_main_job(
    kind: str, tls: bool, start_proxy: StartProxy, authority: Any, new_project: Callable[..., Project]
) -> None:
    proxy = start_proxy(kind, tls=tls)
    if tls:
        project = new_project(f"https://{proxy.endpoint}", etcdlock_ca_cert=authority.ca_cert)
    else:
        project = new_project(proxy.endpoint)
    project.start_worker("-P", "prefork", "-c", "3")
    first = project.module.single.delay(30.0)
    project.bodies.wait_entered()
    refused = project.module.single.delay(30.0).get(timeout=30, propagate=False)
    assert isinstance(refused, TaskRevokedError)
    assert f"is held by task {first.id}" in str(refused)
    project.bodies.end_all()
    assert isinstance(first.get(timeout=30), int)
    results = [project.module.per_key.delay("k") for _ in range(3)]
    assert len({result.get(timeout=60) for result in results}) == 3
    assert project.bodies.overlaps() == []
