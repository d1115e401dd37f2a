"""Locks from the call on: the lifetimes, with real workers and a real result backend."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, group
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from celery_etcdlock import EtcdLocks, LockConflict, SingletonTask
from tests.integration.workers.conftest import Project
from tests.integration.workers.worker_process import is_gone
from tests.waiting import wait_for


def holders(project: Project, name: str) -> int:
    return len(EtcdLocks.from_app(project.app).holders(name))


def key_of(task: Any, key: str = "k") -> str:
    return f"{task.name}:{key}"


class TestAtEnqueue:
    """Without a worker: what the call itself does."""

    @pytest.mark.parametrize("lifetime", ["until_executing", "until_executed", "until_and_while_executing"])
    def test_a_duplicate_is_the_holders_result(self, project: Project, lifetime: str) -> None:
        task = project.module.TABLE[lifetime, "skip"]
        first = task.delay("k")
        second = task.delay(key="k")
        assert second.id == first.id
        assert isinstance(second.lock_conflict, LockConflict)
        assert first.id in str(second.lock_conflict)
        assert task.delay("other").id != first.id

    def test_raise(self, project: Project) -> None:
        task = project.module.TABLE["until_executed", "raise"]
        first = task.delay("k")
        with pytest.raises(LockConflict, match=first.id) as caught:
            task.delay("k")
        assert caught.value.task_id == first.id

    def test_a_callable_decides(self, project: Project) -> None:
        project.module.chosen.delay("k")
        with pytest.raises(LockConflict):
            project.module.chosen.delay("k")

    def test_a_call_that_cannot_be_published_leaves_nothing(self, project: Project) -> None:
        task = project.module.TABLE["until_executed", "skip"]
        with pytest.raises(Exception, match=r"serializable"):
            task.delay("k", value=object())
        assert holders(project, key_of(task)) == 0

    def test_a_call_with_wrong_arguments_takes_nothing(self, project: Project) -> None:
        task = project.module.TABLE["until_executed", "skip"]
        with pytest.raises(TypeError):
            task.apply_async(("k", 0.0, None, False, False, "one too many"))
        assert holders(project, key_of(task)) == 0

    def test_a_purged_message_lapses(self, project: Project) -> None:
        task = project.module.short_lived
        first = task.delay("k")
        project.app.control.purge()
        assert task.delay("k").id == first.id
        wait_for(lambda: task.delay("k").id != first.id, "the lock of the purged message has lapsed", 10)

    def test_a_group_takes_its_locks_in_few_round_trips(self, project: Project) -> None:
        task = project.module.TABLE["until_executed", "skip"]
        counted = _count(project)
        result = group(task.si(f"k{number}") for number in range(200)).apply_async()
        assert len({child.id for child in result.children}) == 200
        assert counted() <= 6

    def test_lock_limit(self, project: Project) -> None:
        task = project.module.two_queued
        first, second = task.delay("k"), task.delay("k")
        assert first.id != second.id
        assert task.delay("k").id == first.id


def _count(project: Project) -> Callable[[], int]:
    """How many operations the store of this process is asked for from now on."""
    manager = EtcdLocks.from_app(project.app).manager
    store = manager.claims._store
    asked = []

    class Counting:
        def perform(self, operation: Any, timeout_seconds: float) -> Any:
            asked.append(operation)
            return store.perform(operation, timeout_seconds)

    manager.claims._store = Counting()  # type: ignore[assignment]
    return lambda: len(asked)


class TestHandOver:
    def test_until_executed_runs_under_the_lock_of_its_message(self, working: Project) -> None:
        task = working.module.TABLE["until_executed", "skip"]
        first = task.delay("k", 30.0)
        working.bodies.wait_entered()
        assert task.delay("k").id == first.id
        [key] = EtcdLocks.from_app(working.app).holders(key_of(task))
        assert key.record is not None
        assert key.record.until is None
        working.bodies.end_all()
        assert first.get(timeout=30) == first.id
        assert holders(working, key_of(task)) == 0

    def test_until_executing_ends_with_the_start(self, working: Project) -> None:
        task = working.module.TABLE["until_executing", "skip"]
        first = task.delay("k", 30.0)
        working.bodies.wait_entered()
        second = task.delay("k", 30.0)
        assert second.id != first.id
        working.bodies.wait_entered(2)
        working.bodies.end_all()
        assert [first.get(timeout=30), second.get(timeout=30)] == [first.id, second.id]

    def test_until_and_while_executing_is_one_running_and_one_queued(self, working: Project) -> None:
        task = working.module.TABLE["until_and_while_executing", "retry"]
        pair = working.module.newest
        first = pair.delay("k", 30.0, value=1)
        working.bodies.wait_entered()
        second = pair.delay("k", 0.0, value=2)
        third = pair.delay("k", 0.0, value=3)
        assert len({first.id, second.id, third.id}) == 3
        with pytest.raises(TaskRevokedError, match="newer call"):
            second.get(timeout=30)
        working.bodies.end_all()
        assert [first.get(timeout=30), third.get(timeout=30)] == [1, 3]
        assert [event["value"] for event in working.bodies.events() if event["event"] == "enter"] == [1, 3]
        assert not working.bodies.overlaps()
        assert task.name != pair.name

    def test_until_expired_stands_after_the_end(self, working: Project) -> None:
        task = working.module.TABLE["until_expired", "skip"]
        first = task.delay("k")
        assert first.get(timeout=30) == first.id
        assert task.delay("k").id == first.id
        assert task.delay("k").get(timeout=5) == first.id

    @pytest.mark.parametrize("lifetime", ["until_executing", "until_executed", "until_and_while_executing"])
    def test_a_failure_frees_the_lock(self, working: Project, lifetime: str) -> None:
        task = working.module.TABLE[lifetime, "skip"]
        first = task.delay("k", fail=True)
        with pytest.raises(ValueError, match="on purpose"):
            first.get(timeout=30)
        assert task.delay("k").get(timeout=30) != first.id

    def test_a_retry_keeps_the_lock(self, working: Project) -> None:
        task = working.module.retried
        first = task.delay("k", 1, 2.0)
        wait_for(lambda: first.state == "RETRY", "the retry is under way")
        assert task.delay("k").id == first.id
        assert first.get(timeout=30) == 1
        second = task.delay("k", 0)
        assert second.id != first.id
        assert second.get(timeout=30) == 0

    def test_a_replacement_keeps_the_lock(self, working: Project) -> None:
        task = working.module.replaced_by_itself
        first = task.delay("k")
        assert first.get(timeout=30) == "the replacement"
        second = task.delay("k")
        assert second.id != first.id
        assert second.get(timeout=30) == "the replacement"

    def test_what_is_published_without_us_is_locked_at_the_worker(self, working: Project) -> None:
        task = working.module.TABLE["until_executed", "skip"]
        first = task.delay("k", 30.0)
        working.bodies.wait_entered()
        foreign = working.app.send_task(task.name, ("k",))
        with pytest.raises(TaskRevokedError, match=first.id):
            foreign.get(timeout=30)
        expired = working.module.TABLE["until_expired", "skip"]
        assert working.app.send_task(expired.name, ("foreign",)).get(timeout=30)
        with pytest.raises(TaskRevokedError):
            working.app.send_task(expired.name, ("foreign",)).get(timeout=30)

    def test_a_chain_goes_on(self, working: Project) -> None:
        task = working.module.TABLE["until_executed", "skip"]
        result = chain(task.si("k", value=1), task.si("k", value=2), task.si("k", value=3))()
        assert result.get(timeout=30) == 3
        assert result.parent.get() == 2


class TestNeverStarted:
    def test_a_revoked_message_frees_its_lock(self, project: Project) -> None:
        task = project.module.TABLE["until_executed", "skip"]
        project.start_worker("-c", "1", environment={"TEST_REMOTE_CONTROL": "yes"})
        first = task.apply_async(("k",), countdown=600)
        wait_for(lambda: project.app.control.inspect(timeout=0.5).scheduled(), "the message waits for its time", 30)
        project.app.control.revoke(first.id)
        second = wait_for(lambda: _other(task, first), "the lock of the revoked message is free", 20)
        project.app.control.revoke(second.id)

    def test_an_expired_message_frees_its_lock(self, project: Project) -> None:
        task = project.module.TABLE["until_executed", "skip"]
        task.apply_async(("k",), expires=1000)  # so that only the worker can free it
        [key] = EtcdLocks.from_app(project.app).holders(key_of(task))
        project.app.control.purge()
        EtcdLocks.from_app(project.app).manager.claims.drop(_claim(task, key))
        late = task.apply_async(("k",), expires=0.5)
        time.sleep(0.6)
        project.start_worker("-c", "1")
        with pytest.raises(TaskRevokedError):
            late.get(timeout=30)
        wait_for(lambda: holders(project, key_of(task)) == 0, "the lock of the expired message is free")

    @pytest.mark.parametrize("how", ["revoked", "expired"])
    def test_a_retry_that_never_starts_frees_what_was_left_for_it(self, project: Project, how: str) -> None:
        """Its message was published before the run ended that left the lock, so it doesn't know the key as it is."""
        task = project.module.retried
        project.start_worker("-c", "1", environment={"TEST_REMOTE_CONTROL": "yes"})
        first = task.apply_async(("k", 1, 6.0 if how == "expired" else 600.0), expires=4 if how == "expired" else None)
        wait_for(lambda: first.state == "RETRY", "the retry is under way")
        assert task.delay("k", 0).id == first.id
        if how == "revoked":
            wait_for(lambda: project.app.control.inspect(timeout=0.5).scheduled(), "the retry waits for its time", 30)
            project.app.control.revoke(first.id)
        second = wait_for(lambda: _published(task, first), "the lock of the retry is free", 30)
        assert second.get(timeout=30) == 0

    def test_a_message_of_a_task_that_no_worker_knows_frees_its_lock(self, project: Project) -> None:
        decorate = project.app.task(base=SingletonTask, name="gone", lock="until_executed", shared=False)

        @decorate
        def task() -> None: ...

        first = task.delay()
        assert task.delay().id == first.id
        project.start_worker("-c", "1")
        wait_for(lambda: holders(project, "gone") == 0, "the lock of the message that was thrown away is free")


def test_a_child_for_each_task(project: Project) -> None:
    """What a message holds survives the child that ran it, and the next child takes it over."""
    project.start_worker("-P", "prefork", "-c", "2", "--max-tasks-per-child", "1")
    task = project.module.retried
    first = task.delay("k", 1, 3.0)
    wait_for(lambda: first.state == "RETRY", "the retry is under way")
    [run] = project.bodies.wait_entered()
    wait_for(lambda: is_gone(run["pid"]), "the child that ran it is gone")
    assert task.delay("k").id == first.id
    assert first.get(timeout=30) == 1
    assert task.delay("k", 0).get(timeout=30) == 0
    assert len({event["pid"] for event in project.bodies.events()}) == 3


def _claim(task: Any, key: Any) -> Any:
    from celery_etcdlock.locking.outcomes import Claim

    return Claim(key_of(task), key.token, key.mod_revision)


def _published(task: Any, first: AsyncResult[Any]) -> AsyncResult[Any] | None:
    result = task.delay("k", 0)
    return result if result.id != first.id else None


def _other(task: Any, first: AsyncResult[Any]) -> AsyncResult[Any] | None:
    result = task.apply_async(("k",), countdown=600)
    return result if result.id != first.id else None
