"""etcd away, late, broken or wrongly configured: nothing is lost, nothing runs unprotected, nothing hangs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from celery_etcdlock import LockUnavailable
from tests.etcd_server import EtcdServer, free_ports
from tests.integration.workers.conftest import Project
from tests.waiting import wait_for


@pytest.fixture
def own_etcd() -> Iterator[EtcdServer]:
    """An etcd that isn't started yet, for this test to treat badly."""
    server = EtcdServer(fsync=False)
    yield server
    server.stop()


def test_a_worker_that_starts_before_etcd_works_as_soon_as_etcd_is_up(
    new_project: Callable[..., Project], own_etcd: EtcdServer
) -> None:
    project = new_project(own_etcd.endpoint, etcdlock_timeout=1)
    worker = project.start_worker("-c", "2")
    results = [project.module.per_key.delay(f"k{n}") for n in range(4)]
    wait_for(lambda: all(result.state == "RETRY" for result in results), "all tasks came back once")
    assert project.bodies.entered() == 0
    own_etcd.start()
    for result in results:
        assert isinstance(result.get(timeout=60), int)
    assert project.bodies.entered() == 4
    text = worker.text()
    # One warning for each of the two processes, however many tasks came back, with the reason and the remedy.
    assert 1 <= text.count("can't acquire locks") <= 2
    assert "Connection refused" in text
    assert "etcdlock_endpoints" in text
    assert "celery-etcdlock: etcd is unreachable; locked tasks will wait" in text  # at its start, before any task


def test_an_outage_in_between_delays_tasks_and_loses_none(
    new_project: Callable[..., Project], own_etcd: EtcdServer
) -> None:
    own_etcd.start()
    project = new_project(own_etcd.endpoint, etcdlock_timeout=1)
    project.start_worker("-c", "2")
    assert isinstance(project.module.strict.delay().get(timeout=30), int)
    own_etcd.kill()
    result = project.module.strict.delay()
    wait_for(lambda: result.state == "RETRY", "the task came back")
    own_etcd.start()
    assert isinstance(result.get(timeout=60), int)
    assert project.bodies.entered() == 2


def test_a_stopped_etcd_holds_a_task_up_no_longer_than_the_timeout(
    new_project: Callable[..., Project], own_etcd: EtcdServer
) -> None:
    own_etcd.start()
    project = new_project(own_etcd.endpoint, etcdlock_timeout=1, etcdlock_on_unavailable="raise")
    project.start_worker("-c", "1")
    project.module.strict.delay().get(timeout=30)
    own_etcd.pause()
    try:
        started = time.monotonic()
        with pytest.raises(LockUnavailable):
            project.module.strict.delay().get(timeout=30)
        assert time.monotonic() - started < 5
    finally:
        own_etcd.resume()
    # The request that went unanswered has been made to have no effect, or the lock would be held by nobody.
    wait_for(lambda: _succeeds(project), "the lock is free again", 40)
    assert project.bodies.overlaps() == []


def _succeeds(project: Project) -> bool:
    result = project.module.strict.delay()
    result.get(timeout=30, propagate=False)
    return bool(result.state == "SUCCESS")


def test_run_runs_unprotected_and_says_so_loudly(new_project: Callable[..., Project]) -> None:
    project = new_project(f"127.0.0.1:{free_ports(1)[0]}", etcdlock_timeout=1, etcdlock_on_unavailable="run")
    worker = project.start_worker("-c", "1")
    assert project.module.strict.delay().get(timeout=30) == 0
    assert "runs WITHOUT its lock" in worker.text()
    assert [event["token"] for event in project.bodies.events()] == [0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"etcdlock_ttll": 5}, "unknown setting 'etcdlock_ttll' (did you mean 'etcdlock_ttl'?)"),
        ({"etcdlock_ttl": "soon"}, "etcdlock_ttl must be"),
        ({"etcdlock_endpoints": "ftp://x"}, "etcdlock_endpoints"),
        ({"ETCDLOCK_TTL": 5}, "write etcdlock_ttl"),
    ],
)
def test_a_worker_with_wrong_settings_does_not_start(
    new_project: Callable[..., Project], settings: dict[str, object], message: str
) -> None:
    project = new_project(**settings)
    worker = project.start_worker(wait=False)
    assert worker.wait_exit() != 0
    assert message in worker.text()


def test_a_killed_worker_frees_its_locks_with_its_lease(new_project: Callable[..., Project]) -> None:
    project = new_project(etcdlock_ttl=2, etcdlock_timeout=1)
    doomed = project.start_worker("-c", "1", "--hostname", "doomed@test")
    project.module.per_key.delay("a", 600.0)
    project.bodies.wait_entered(1)
    doomed.group_kill()
    # Sent after the death, or the dead worker's prefetched messages would be this one's grave too.
    waiting = project.module.per_key.delay("a")
    project.start_worker("-c", "1")
    assert isinstance(waiting.get(timeout=60), int)
    assert project.bodies.entered() == 2


def test_a_warm_shutdown_lets_the_body_end_and_frees_the_lock(project: Project) -> None:
    """Rule 12."""
    worker = project.start_worker("-c", "1")
    result = project.module.strict.delay(2.0)
    project.bodies.wait_entered()
    worker.terminate()
    worker.wait_exit()
    assert isinstance(result.get(timeout=5), int)
    assert [event["lost"] for event in project.bodies.events() if event["event"] == "exit"] == [False]
    project.start_worker("-c", "1")
    assert isinstance(project.module.strict.delay().get(timeout=20), int)
