"""pytest-celery with etcd as a component: three members, two workers out of this checkout, and evidence on the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_docker_tools.wrappers.container as docker_tools
from celery import Celery
from pytest_celery import CeleryTestWorker, CeleryWorkerCluster, CeleryWorkerContainer
from pytest_celery.defaults import DEFAULT_WORKER_VOLUME
from pytest_docker_tools import build, container, fxtr

from celery_etcdlock.contrib.pytest_celery import EtcdCluster
from tests.e2e import engine, tasks
from tests.e2e.evidence import Evidence
from tests.e2e.sweep import label_everything, sweep

pytest_plugins = ["pytest_celery.plugin", "celery_etcdlock.contrib.pytest_celery"]

ROOT = Path(__file__).resolve().parents[2]

if Path("/sys/class/net/docker0").exists():
    # In a container that runs an engine of its own (/.dockerenv is there): the mapped ports are on this machine.
    docker_tools.tests_inside_container = lambda: False


def pytest_sessionstart() -> None:
    problem = engine.why_no_docker()
    if problem:
        # In one line, and an error: these tests are only run on purpose.
        pytest.exit(f"e2e tests: {problem}", returncode=1)
    label_everything()


def pytest_unconfigure() -> None:
    if engine.why_no_docker() is None:
        sweep()


class WorkerContainer(CeleryWorkerContainer):
    @classmethod
    def tasks_modules(cls) -> set[Any]:
        return {tasks}

    @classmethod
    def command(cls, *args: str, **options: Any) -> list[str]:
        return super().command("-c", "2", *args, **options)


@pytest.fixture
def default_worker_container_cls() -> type[CeleryWorkerContainer]:
    return WorkerContainer


@pytest.fixture(scope="session")
def default_worker_container_session_cls() -> type[CeleryWorkerContainer]:
    return WorkerContainer


worker_image = build(
    path=str(ROOT),
    tag="celery-etcdlock-stack",
    buildargs={"PYTHON_IMAGE": engine.PYTHON_IMAGE},
)


@pytest.fixture
def default_etcd_image() -> str:
    return engine.etcd_image()


@pytest.fixture
def evidence_directory(tmp_path: Path) -> str:
    """Mounted into the workers, who aren't root."""
    directory = tmp_path / "evidence"
    directory.mkdir()
    directory.chmod(0o777)
    return str(directory)


@pytest.fixture
def evidence(evidence_directory: str) -> Iterator[Evidence]:
    evidence = Evidence(Path(evidence_directory))
    yield evidence
    evidence.end_all()


def worker() -> Any:
    return container(
        image="{worker_image.id}",
        environment=fxtr("default_worker_env"),
        network="{default_pytest_celery_network.name}",
        volumes={
            "{default_worker_volume.name}": DEFAULT_WORKER_VOLUME,
            "{evidence_directory}": {"bind": "/evidence", "mode": "rw"},
        },
        wrapper_class=WorkerContainer,
        timeout=60,
        command=fxtr("default_worker_command"),
    )


default_worker_container = worker()
second_worker_container = worker()


@pytest.fixture
def celery_worker_cluster(
    celery_worker: CeleryTestWorker, second_worker_container: WorkerContainer, default_worker_app: Celery
) -> Iterator[CeleryWorkerCluster]:
    cluster = CeleryWorkerCluster(celery_worker, CeleryTestWorker(second_worker_container, default_worker_app))
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_etcd(celery_etcd_cluster: EtcdCluster) -> EtcdCluster:
    return celery_etcd_cluster


@pytest.fixture
def broker() -> str:
    """``redis``, ``rabbitmq classic`` or ``rabbitmq quorum``: tests parametrize it."""
    return "redis"


@pytest.fixture
def celery_broker(broker: str, request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("celery_redis_broker" if broker == "redis" else "celery_rabbitmq_broker")


@pytest.fixture
def celery_backend(celery_redis_backend: Any) -> Any:
    return celery_redis_backend


@pytest.fixture
def ttl() -> int:
    """Seconds until a dead holder's lock is free."""
    return 3


@pytest.fixture
def default_worker_app(default_worker_app: Celery, broker: str, ttl: int) -> Celery:
    """The test's app; what is changed in its configuration here is changed in the workers' too."""
    default_worker_app.conf.update(etcdlock_ttl=ttl, etcdlock_timeout=1.5, worker_prefetch_multiplier=1)
    if broker == "rabbitmq quorum":
        default_worker_app.conf.update(
            task_default_queue_type="quorum", broker_transport_options={"confirm_publish": True}
        )
    return default_worker_app
