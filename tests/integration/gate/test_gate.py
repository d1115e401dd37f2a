"""Messages that wait for a lock in the worker's MainProcess: no slot, woken by a watch, given back when it stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from celery_etcdlock import EtcdLocks, LockConflict
from tests.fault_proxy import FaultProxy
from tests.integration.workers.conftest import Project
from tests.integration.workers.worker_process import Worker
from tests.rabbitmq_server import RabbitServer
from tests.waiting import wait_for

MODULE = "tests.integration.gate.tasks_app"
NewProject = Callable[..., Project]
POOLS = ["prefork", "threads", "gevent"]


def outcome(result: AsyncResult[Any]) -> object:
    return result.get(timeout=30, propagate=False)


def entered(project: Project) -> list[dict[str, Any]]:
    return [event for event in project.bodies.events() if event["event"] == "enter"]


def came_back(*results: AsyncResult[Any]) -> None:
    wait_for(lambda: all(result.state == "RETRY" for result in results), "all came back once")


def ask(project: Project) -> Any:
    return project.app.control.inspect(["w0@test"], timeout=10, limit=1)


def wait_parked(project: Project, count: int) -> None:
    def parked() -> int | None:
        # With an old Celery an answer may get lost.
        stats = ask(project).stats()
        return stats["w0@test"]["etcdlock_gate"]["parked"] if stats else None

    wait_for(lambda: parked() == count, f"{count} messages are parked")


def held(project: Project, task: str, key: str = "a") -> Any:
    """The lock of that task's calls with this key, held by this process."""
    return EtcdLocks.from_app(project.app).lock(getattr(project.module, task)._lock_names((key,), {})[0])


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
    """Rule 15."""
    project = new_project(module=MODULE)
    project.start_worker("-c", "2")
    task = getattr(project.module, policy)
    holder = task.delay("a", 0, 60.0)
    project.bodies.wait_entered()
    blocked = [task.delay("a", number) for number in range(1, 101)]
    came_back(*blocked)
    waited, unrelated = [], []
    for _ in range(10):
        started = time.monotonic()
        # They are kept, because with Celery 5.4 a result that is collected while another is awaited stops the process.
        unrelated.append(project.module.plain.delay())
        assert outcome(unrelated[-1]) == "plain"
        waited.append(time.monotonic() - started)
    assert sorted(waited)[5] < 0.2, waited
    project.bodies.end_all()
    assert outcome(holder) == 0
    assert sorted(outcome(result) for result in blocked) == list(range(1, 101))  # type: ignore[type-var]
    assert project.bodies.overlaps() == []


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_parked_messages_take_no_slot_and_are_listed(new_project: NewProject, pool: str) -> None:
    project = new_project(module=MODULE)
    worker = project.start_worker("-c", "1", "-P", pool, environment={"TEST_REMOTE_CONTROL": "1"})
    with held(project, "waits"):
        parked = []
        for number in range(3):
            parked.append(project.module.waits.delay("a", number))
            came_back(parked[-1])
        assert outcome(project.module.plain.delay()) == "plain"
        wait_parked(project, 3)
        scheduled = ask(project).scheduled()["w0@test"]
        assert sorted(each["request"]["id"] for each in scheduled) == sorted(each.id for each in parked)
    started = time.monotonic()
    assert [outcome(each) for each in parked] == [0, 1, 2]
    with held(project, "waits"):
        pass  # free by the time that the last result is there
    assert time.monotonic() - started < 3, worker.text()
    assert [event["number"] for event in entered(project)] == [0, 1, 2]


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
    with held(project, "impatient"), held(project, "waits") as lock:
        impatient = project.module.impatient.delay("a")
        expires = project.module.waits.apply_async(("a",), expires=2)
        revoked = project.module.waits.delay("a")
        came_back(impatient, expires, revoked)
        project.app.control.revoke(revoked.id)
        # At once, though its turn hasn't come.
        assert isinstance(outcome(revoked), TaskRevokedError)
        assert isinstance(outcome(impatient), LockConflict)
        assert isinstance(outcome(expires), TaskRevokedError)
        wait_parked(project, 0)
        claims = EtcdLocks.from_app(project.app).manager.claims
        wait_for(lambda: len(claims.look(lock.name)) == 1, "no place in line is left")
    assert entered(project) == []


def test_a_warm_shutdown_gives_parked_messages_back(new_project: NewProject) -> None:
    project = new_project(module=MODULE)
    first = project.start_worker("-c", "2")
    with held(project, "waits"):
        parked = [project.module.waits.delay("a", number) for number in range(4)]
        came_back(*parked)
        first.terminate()
        first.wait_exit()
        project.start_worker("-c", "2")
    assert sorted(outcome(each) for each in parked) == [0, 1, 2, 3]  # type: ignore[type-var]
    assert project.bodies.overlaps() == []
    assert len(entered(project)) == 4


def received(worker: Worker, *results: AsyncResult[Any], times: int) -> None:
    def each() -> bool:
        text = worker.text()
        return all(text.count(f"[{result.id}] received") >= times for result in results)

    wait_for(each, f"the worker has had each message {times} times")


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_lost_connection_hands_parked_messages_back(
    new_project: NewProject, request: pytest.FixtureRequest, broker: str
) -> None:
    server = request.getfixturevalue(broker)
    url = {"redis": "redis://127.0.0.1:{}/0", "rabbitmq": "amqp://guest:guest@127.0.0.1:{}//"}[broker]
    with FaultProxy(server.port) as proxy:
        project = new_project(module=MODULE, broker=url.format(server.port))
        environment = {"TEST_REMOTE_CONTROL": "1", "TEST_BROKER": url.format(proxy.port)}
        worker = project.start_worker("-c", "4", environment=environment)
        with held(project, "waits"):
            parked = [project.module.waits.delay("a", number, 0.1) for number in range(4)]
            received(worker, *parked, times=2)
            wait_parked(project, 4)
            proxy.cut()
            received(worker, *parked, times=3)
            wait_parked(project, 4)
        assert [outcome(each) for each in parked] == [0, 1, 2, 3]
        assert sorted(event["number"] for event in entered(project)) == [0, 1, 2, 3]
        assert project.bodies.overlaps() == []
        # They waited in the gate again: no second try in the pool.
        assert worker.text().count("] retry: ") == 4
        worker.stop()


def test_another_worker_runs_what_a_killed_one_had_parked(new_project: NewProject, rabbitmq: RabbitServer) -> None:
    project = new_project(module=MODULE, broker=rabbitmq.url)
    first = project.start_worker("-c", "4")
    with held(project, "waits"):
        parked = [project.module.waits.delay("a", number, 0.1) for number in range(4)]
        received(first, *parked, times=2)
        second = project.start_worker("-c", "4")
        first.group_kill()
        received(second, *parked, times=1)
    assert [outcome(each) for each in parked] == [0, 1, 2, 3]
    assert sorted(event["number"] for event in entered(project)) == [0, 1, 2, 3]
    assert project.bodies.overlaps() == []


def test_a_rate_limit_is_kept_when_locks_come_free_at_once(new_project: NewProject) -> None:
    project = new_project(module=MODULE)
    project.start_worker("-c", "4", environment={"TEST_REMOTE_CONTROL": "1"})
    with held(project, "limited", "a"), held(project, "limited", "b"), held(project, "limited", "c"):
        parked = [project.module.limited.delay(key, number) for number, key in enumerate("abc")]
        wait_parked(project, 3)
    assert [outcome(each) for each in parked] == [0, 1, 2]
    at = [event["at"] for event in entered(project)]
    # Two a second, and a bit for the time that a message takes to get into the pool.
    assert len(at) == 3
    assert min(at[1] - at[0], at[2] - at[1]) > 0.3, at


def test_a_busy_worker_lets_others_go_first(new_project: NewProject) -> None:
    """Rule 13."""
    project = new_project(module=MODULE)
    project.start_worker("-c", "1")
    with held(project, "waits") as lock:
        here = project.module.waits.delay("a", 1)
        came_back(here)
        busy = project.module.retries.delay("other", 0, 60.0)
        project.bodies.wait_entered()
    # Its turn has come, and its worker has no slot: somebody else must be able to have the lock.
    with EtcdLocks.from_app(project.app).lock(lock.name, wait_timeout=10):
        assert here.state == "RETRY"
    project.bodies.end_all()
    assert outcome(busy) == 0
    assert outcome(here) == 1


def test_more_than_the_limit_come_back_by_their_delay(new_project: NewProject) -> None:
    """Rule 15."""
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


@pytest.mark.parametrize("exchange", ["direct", "topic"])
def test_on_quorum_queues_messages_wait_at_the_broker(
    new_project: NewProject, rabbitmq: RabbitServer, exchange: str
) -> None:
    pytest.importorskip("kombu.transport.native_delayed_delivery", reason="Celery 5.4 has no delays on quorum queues")
    project = new_project(
        module=MODULE, broker=rabbitmq.url, task_default_queue_type="quorum", task_default_exchange_type=exchange
    )
    worker = project.start_worker("-c", "2", environment={"TEST_REMOTE_CONTROL": "1"})
    assert "no gate on quorum queues" in worker.text()
    with held(project, "retries"):
        # More than the eight that this worker may have at once.
        blocked = [project.module.retries.delay("a", number) for number in range(12)]
        came_back(*blocked)
        kept_by_worker = 0
        for _ in range(5):
            kept_by_worker = max(kept_by_worker, len(ask(project).scheduled()["w0@test"]))
            assert outcome(project.module.plain.delay()) == "plain"
        assert kept_by_worker < 4
    assert [outcome(each) for each in blocked] == list(range(12))
    with held(project, "waits", "b"):
        in_line = []
        for number in range(12, 15):
            in_line.append(project.module.waits.delay("b", number))
            came_back(in_line[-1])
        # RabbitMQ drops what goes in circles, unless it doesn't look like it.
        received(worker, *in_line, times=3)
    assert [outcome(each) for each in in_line] == [12, 13, 14]
    assert [event["number"] for event in entered(project)][12:] == [12, 13, 14]
    assert project.bodies.overlaps() == []
