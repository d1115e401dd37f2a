"""Messages that wait for a lock in the worker's MainProcess: no slot, woken by a watch, given back when it stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from celery.worker.request import Request

from celery_etcdlock import EtcdLocks, LockConflict
from tests.integration.workers.conftest import Project
from tests.rabbitmq_server import RabbitServer
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(
    not hasattr(Request, "_eta_timer_entry"), reason="before Celery 5.7 there is no gate: messages come back by delay"
)
MODULE = "tests.integration.gate.tasks_app"
NewProject = Callable[..., Project]
POOLS = ["prefork", "threads", "gevent"]


def outcome(result: AsyncResult[Any]) -> object:
    return result.get(timeout=30, propagate=False)


def entered(project: Project) -> list[dict[str, Any]]:
    return [event for event in project.bodies.events() if event["event"] == "enter"]


def came_back(*results: AsyncResult[Any]) -> None:
    wait_for(lambda: all(result.state == "RETRY" for result in results), "all came back once")


@pytest.mark.parametrize("pool", POOLS)
def test_waiters_go_in_order_and_at_once(new_project: NewProject, pool: str) -> None:
    project = new_project(module=MODULE)
    project.start_worker("-c", "3", "-P", pool)
    results = [project.module.waits.delay("a", 0, 60.0)]
    project.bodies.wait_entered()
    for number in range(1, 6):
        results.append(project.module.waits.delay("a", number))
        came_back(results[-1])
    # Long enough for the delays of those that come back by themselves to have grown to seconds.
    time.sleep(3.0)
    project.bodies.end_all()
    assert [outcome(result) for result in results] == list(range(6))
    assert [event["number"] for event in entered(project)] == list(range(6))
    assert project.bodies.overlaps() == []
    events = project.bodies.events()
    end_of_first = next(event["at"] for event in events if event["event"] == "exit")
    # gevent has no hub of kombu's to wake.
    assert events[-1]["at"] - end_of_first < 1.5


@pytest.mark.parametrize("policy", ["retries", "waits"])
def test_blocked_messages_do_not_delay_an_unrelated_task(new_project: NewProject, policy: str) -> None:
    project = new_project(module=MODULE)
    project.start_worker("-c", "2")
    task = getattr(project.module, policy)
    holder = task.delay("a", 0, 60.0)
    project.bodies.wait_entered()
    blocked = [task.delay("a", number) for number in range(1, 31)]
    came_back(*blocked)
    waited = []
    for _ in range(10):
        started = time.monotonic()
        assert outcome(project.module.plain.delay()) == "plain"
        waited.append(time.monotonic() - started)
    assert sorted(waited)[5] < 0.2, waited
    project.bodies.end_all()
    assert outcome(holder) == 0
    assert sorted(outcome(result) for result in blocked) == list(range(1, 31))  # type: ignore[type-var]
    assert project.bodies.overlaps() == []


def test_a_parked_message_takes_no_slot_and_is_listed(new_project: NewProject) -> None:
    project = new_project(module=MODULE)
    project.start_worker("-c", "1", environment={"TEST_REMOTE_CONTROL": "1"})
    with EtcdLocks.from_app(project.app).lock(f"{MODULE}.waits:x"):
        pass
    name = project.module.waits._lock_names(("a",), {})[0]
    with EtcdLocks.from_app(project.app).lock(name):
        parked = project.module.waits.delay("a", 7)
        came_back(parked)
        assert outcome(project.module.plain.delay()) == "plain"
        ask = project.app.control.inspect(["w0@test"], timeout=10, limit=1)
        assert ask.stats()["w0@test"]["etcdlock_gate"] == {"parked": 1}
        assert [each["request"]["id"] for each in ask.scheduled()["w0@test"]] == [parked.id]
    started = time.monotonic()
    assert outcome(parked) == 7
    assert time.monotonic() - started < 2


def test_joined_results_come_as_soon_as_the_first_has_one(new_project: NewProject) -> None:
    project = new_project(module=MODULE)
    project.start_worker("-c", "2")
    first = project.module.joins.delay("a", 5, 60.0)
    project.bodies.wait_entered()
    others = [project.module.joins.delay("a", 6) for _ in range(3)]
    came_back(*others)
    time.sleep(2.0)
    project.bodies.end_all()
    assert outcome(first) == 5
    started = time.monotonic()
    assert [outcome(other) for other in others] == [5, 5, 5]
    assert time.monotonic() - started < 2
    assert len(entered(project)) == 1


def test_time_to_wait_expiry_and_revocation_are_respected(new_project: NewProject) -> None:
    project = new_project(module=MODULE)
    project.start_worker("-c", "1", environment={"TEST_REMOTE_CONTROL": "1"})
    names = [getattr(project.module, task)._lock_names(("a",), {})[0] for task in ("impatient", "waits")]
    with EtcdLocks.from_app(project.app).lock(names[0]), EtcdLocks.from_app(project.app).lock(names[1]):
        impatient = project.module.impatient.delay("a")
        expires = project.module.waits.apply_async(("a",), expires=2)
        revoked = project.module.waits.delay("a")
        came_back(impatient, expires, revoked)
        project.app.control.revoke(revoked.id)
        assert isinstance(outcome(impatient), LockConflict)
        assert isinstance(outcome(expires), TaskRevokedError)
    assert isinstance(outcome(revoked), TaskRevokedError)
    assert entered(project) == []


def test_a_warm_shutdown_gives_parked_messages_back(new_project: NewProject) -> None:
    project = new_project(module=MODULE)
    first = project.start_worker("-c", "2")
    name = project.module.waits._lock_names(("a",), {})[0]
    with EtcdLocks.from_app(project.app).lock(name):
        parked = [project.module.waits.delay("a", number) for number in range(4)]
        came_back(*parked)
        first.terminate()
        first.wait_exit()
        project.start_worker("-c", "2")
    assert sorted(outcome(each) for each in parked) == [0, 1, 2, 3]  # type: ignore[type-var]
    assert project.bodies.overlaps() == []
    assert len(entered(project)) == 4


def test_a_busy_worker_lets_others_go_first(new_project: NewProject) -> None:
    project = new_project(module=MODULE)
    project.start_worker("-c", "1")
    name = project.module.waits._lock_names(("a",), {})[0]
    with EtcdLocks.from_app(project.app).lock(name):
        here = project.module.waits.delay("a", 1)
        came_back(here)
        busy = project.module.retries.delay("other", 0, 60.0)
        project.bodies.wait_entered()
    # Its turn has come, and its worker has no slot: somebody else must be able to have the lock.
    with EtcdLocks.from_app(project.app).lock(name, wait_timeout=10):
        assert here.state == "RETRY"
    project.bodies.end_all()
    assert outcome(busy) == 0
    assert outcome(here) == 1


def test_more_than_the_limit_come_back_by_their_delay(new_project: NewProject) -> None:
    project = new_project(module=MODULE, etcdlock_gate_limit=1)
    project.start_worker("-c", "2")
    results = [project.module.waits.delay("a", number, 0.2) for number in range(4)]
    assert sorted(outcome(result) for result in results) == [0, 1, 2, 3]  # type: ignore[type-var]
    assert project.bodies.overlaps() == []


def test_the_gate_can_be_switched_off(new_project: NewProject) -> None:
    project = new_project(module=MODULE, etcdlock_gate=False)
    project.start_worker("-c", "2", environment={"TEST_REMOTE_CONTROL": "1"})
    results = [project.module.waits.delay("a", number, 0.2) for number in range(3)]
    assert sorted(outcome(result) for result in results) == [0, 1, 2]  # type: ignore[type-var]
    stats = project.app.control.inspect(["w0@test"], timeout=10, limit=1).stats()["w0@test"]
    assert stats["etcdlock_gate"] == {"parked": 0}


def test_over_rabbitmq(new_project: NewProject, rabbitmq: RabbitServer) -> None:
    project = new_project(module=MODULE, broker=rabbitmq.url)
    project.start_worker("-c", "2")
    results = [project.module.waits.delay("a", 0, 60.0)]
    project.bodies.wait_entered()
    for number in range(1, 9):
        results.append(project.module.waits.delay("a", number))
    came_back(*results[1:])
    assert outcome(project.module.plain.delay()) == "plain"
    project.bodies.end_all()
    assert [outcome(result) for result in results] == list(range(9))
    assert project.bodies.overlaps() == []


def test_quorum_queues_have_no_gate_and_wait_by_delay(new_project: NewProject, rabbitmq: RabbitServer) -> None:
    project = new_project(
        module=MODULE,
        broker=rabbitmq.url,
        task_default_queue_type="quorum",
        worker_detect_quorum_queues=True,
        broker_native_delayed_delivery_queue_type="quorum",
    )
    worker = project.start_worker("-c", "2")
    results = [project.module.waits.delay("a", number, 0.2) for number in range(3)]
    assert sorted(outcome(result) for result in results) == [0, 1, 2]  # type: ignore[type-var]
    assert "no gate on quorum queues" in worker.text()
    assert project.bodies.overlaps() == []
