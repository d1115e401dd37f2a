"""A message that is delivered twice, and steps of one task that follow each other (rules 6 and 7)."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from celery.result import AsyncResult

from celery_etcdlock.tasks.message.headers import CALL_HEADER
from tests.fault_proxy import FaultProxy
from tests.integration.workers.conftest import Project
from tests.rabbitmq_server import RabbitServer
from tests.redis_server import RedisServer
from tests.waiting import wait_for

HAS_RUN = "has run already: this is a redelivered copy"
WAITS = "is a redelivered copy and waits"


@pytest.fixture
def project(new_project: Callable[..., Project]) -> Project:
    return new_project(etcdlock_timeout=2)


def publish(project: Project, task_id: str, *arguments: object) -> AsyncResult:
    """The same message each time: a second call under its id would be another message."""
    headers = {CALL_HEADER: [task_id, "the one call"]}
    result: AsyncResult = project.module.late.apply_async(arguments, task_id=task_id, headers=headers)
    return result


def test_copies_of_one_message(project: Project) -> None:
    worker = project.start_worker("-c", "2")

    # While the first runs, its copy neither runs nor touches the result, and is done with when the first has ended.
    ident = uuid.uuid4().hex
    first = publish(project, ident, "a", 60.0)
    project.bodies.wait_entered()
    publish(project, ident, "a", 60.0)
    wait_for(lambda: WAITS in worker.text(), "the copy waits")
    assert first.state == "PENDING"
    project.bodies.end_all()
    token = first.get(timeout=30)
    wait_for(lambda: HAS_RUN in worker.text(), "the copy is done with", 30)
    assert project.bodies.entered() == 1
    assert (first.state, first.result) == ("SUCCESS", token)

    # A copy that comes when all is over doesn't run either; a new call of the task does.
    publish(project, ident, "a")
    wait_for(lambda: worker.text().count(HAS_RUN) == 2, "the late copy is done with", 30)
    assert publish(project, uuid.uuid4().hex, "a").get(timeout=30) > token
    assert project.bodies.entered() == 2
    assert project.bodies.overlaps() == []


def test_copies_that_came_back_a_different_number_of_times(new_project: Callable[..., Project]) -> None:
    """Seen by the chaos suite: one copy had made way for a stranger, and was taken for another message after that."""
    project = new_project(etcdlock_gate=False)  # which keeps a message that came back, until its turn comes
    worker = project.start_worker("-c", "3")
    stranger = publish(project, uuid.uuid4().hex, "a", 60.0)
    project.bodies.wait_entered()
    ident = uuid.uuid4().hex
    result = publish(project, ident, "a")
    wait_for(lambda: worker.text().count(f"[{ident}] retry:") >= 2, "it came back twice")
    publish(project, ident, "a")
    wait_for(lambda: worker.text().count(f"[{ident}] received") >= 4, "its copy has come")
    project.bodies.end_all()
    stranger.get(timeout=30)
    wait_for(lambda: HAS_RUN in worker.text(), "one has run, and the other is done with", 60)
    assert project.bodies.entered() == 2
    # A copy that comes while somebody else holds the lock has no result to touch either.
    assert result.state == "SUCCESS"


def test_a_copy_runs_when_the_first_died(project: Project) -> None:
    worker = project.start_worker("-c", "2")
    ident = uuid.uuid4().hex
    result = publish(project, ident, "a", 60.0)
    [event] = project.bodies.wait_entered()
    publish(project, ident, "a", 60.0)
    wait_for(lambda: WAITS in worker.text(), "the copy waits")
    os.kill(event["pid"], signal.SIGKILL)
    project.bodies.wait_entered(2)
    project.bodies.end_all()
    # Celery first reports a WorkerLostError, and a result object keeps what it saw.
    wait_for(lambda: AsyncResult(ident, app=result.app).state == "SUCCESS", "the copy has run", 30)
    assert project.bodies.entered() == 2


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> tuple[int, str]:
    """Port, and URL with a place for the port."""
    server: Any = request.getfixturevalue(request.param)
    if isinstance(server, RedisServer):
        return server.port, "redis://127.0.0.1:{}/0"
    assert isinstance(server, RabbitServer)
    return server.port, "amqp://guest:guest@127.0.0.1:{}//"


def test_a_lost_connection_delivers_again_and_nothing_runs_twice(
    new_project: Callable[..., Project], broker: tuple[int, str]
) -> None:
    """Rule 14."""
    port, url = broker
    with FaultProxy(port) as proxy:
        project = new_project(broker=url.format(proxy.port), etcdlock_timeout=2)
        worker = project.start_worker("-c", "2")
        result = publish(project, uuid.uuid4().hex, "a", 60.0)
        project.bodies.wait_entered()
        proxy.cut()
        wait_for(lambda: WAITS in worker.text(), "the broker delivered it again", 60)
        assert project.bodies.entered() == 1
        project.bodies.end_all()
        assert isinstance(result.get(timeout=30), int)
        wait_for(lambda: HAS_RUN in worker.text(), "the copy is done with", 60)
        assert project.bodies.entered() == 1
        assert result.state == "SUCCESS"


def test_a_retry_or_replacement_waits_for_the_release_and_takes_over(project: Project) -> None:
    project.start_worker("-c", "3")
    assert isinstance(project.module.retries_before_its_end.delay().get(timeout=30), int)
    wait_for(lambda: len(project.bodies.events()) == 4, "both have run", 30)
    project.module.replaces_before_its_end.delay()
    wait_for(lambda: len(project.bodies.events()) == 8, "both have run", 30)
    assert project.bodies.overlaps() == []
    for name in {event["name"] for event in project.bodies.events()}:
        one, other = (event for event in project.bodies.events() if event["name"] == name and event["event"] == "enter")
        [end, _] = (event for event in project.bodies.events() if event["name"] == name and event["event"] == "exit")
        # No TTL, and no delay of a conflict: woken by the release.
        assert 0 < other["at"] - end["at"] < 1.0
        assert other["token"] > one["token"]
