"""An app with a name, a queue and a prefix of its own for each test, and real workers for it."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from celery_etcdlock import EtcdLocks
from tests.etcd_server import EtcdServer
from tests.integration.workers.etcd_admin import Admin
from tests.integration.workers.worker_process import Beat, Bodies, Worker
from tests.redis_server import RedisServer
from tests.waiting import wait_for

_numbers = itertools.count()

StartWorker = Callable[..., Worker]


class Project:
    """One test's app. ``module`` is the app's module in this process; workers have their own."""

    def __init__(
        self,
        broker: str,
        backend: str,
        endpoint: str,
        directory: Path,
        *,
        module: str = "tests.integration.workers.app",
        **settings: object,
    ) -> None:
        self._module_name = module
        self.name = f"test{os.getpid()}x{next(_numbers)}"
        self.directory = directory
        self.bodies = Bodies(directory / "bodies")
        self.environment = {
            **os.environ,
            "TEST_MODULE": module,
            "TEST_APP_NAME": self.name,
            "TEST_BROKER": broker,
            "TEST_BACKEND": backend,
            "TEST_LOG": str(self.bodies.path),
            "TEST_SETTINGS": json.dumps({"etcdlock_endpoints": endpoint, **settings}),
        }
        self._workers: list[Worker | Beat] = []
        self.module = self._load()
        self.app = self.module.app

    def _load(self) -> ModuleType:
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            sys.modules.pop(self._module_name, None)
            module = importlib.import_module(self._module_name)
            module.app.set_current()
            module.app.finalize()
            return module
        finally:
            os.environ.clear()
            os.environ.update(before)

    def start_beat(self, **schedule: dict[str, object]) -> Beat:
        """Celery's beat, with these entries: a task's name, its ``schedule`` in seconds, and its arguments."""
        settings = json.loads(self.environment["TEST_SETTINGS"]) | {"beat_schedule": schedule}
        beat = Beat(self.environment | {"TEST_SETTINGS": json.dumps(settings)}, self.directory)
        self._workers.append(beat)
        return beat

    def start_worker(self, *arguments: str, wait: bool = True, environment: dict[str, str] | None = None) -> Worker:
        name = f"w{len(self._workers)}"
        environment = self.environment | (environment or {})
        worker = Worker(environment, self.directory, name, *arguments)
        self._workers.append(worker)
        if not wait:
            return worker
        worker.wait_ready()
        if environment.get("TEST_REMOTE_CONTROL"):
            # "ready" is said before it listens: a command that comes in between is never heard.
            wait_for(lambda: self.app.control.ping([f"{name}@test"], timeout=1.0), "the worker hears commands", 60)
        return worker

    def close(self) -> None:
        self.bodies.end_all()
        for worker in self._workers:
            worker.stop()
        EtcdLocks.from_app(self.app).close()
        self.app.close()


@pytest.fixture
def new_project(
    redis: RedisServer, etcd: EtcdServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Project]]:
    projects: list[Project] = []

    def make(endpoint: str = etcd.endpoint, *, broker: str = redis.url(0), **settings: object) -> Project:
        projects.append(Project(broker, redis.url(1), endpoint, tmp_path, **settings))
        return projects[-1]

    yield make
    for project in projects:
        project.close()


@pytest.fixture(scope="module")
def shared_project(redis: RedisServer, etcd: EtcdServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """One project with one worker for all tests of a file."""
    project = Project(redis.url(0), redis.url(1), etcd.endpoint, tmp_path_factory.mktemp("shared"))
    project.start_worker("-c", "4")
    yield project
    project.close()


@pytest.fixture
def working(shared_project: Project) -> Iterator[Project]:
    """A project with a worker that it shares with other tests, which have left nothing running."""
    shared_project.bodies.forget()
    yield shared_project
    shared_project.bodies.end_all()
    wait_for(shared_project.bodies.all_ended, "all bodies have come to their end")


@pytest.fixture
def project(new_project: Callable[..., Project]) -> Project:
    return new_project()


@pytest.fixture
def admin(project: Project, etcd: EtcdServer) -> Iterator[Admin]:
    admin = Admin(project, etcd.endpoint)
    yield admin
    admin.close()
