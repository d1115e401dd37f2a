"""What celery-once and celery-singleton document, with the options of ``docs/migrating.md``."""

from __future__ import annotations

import pytest
from celery import chain
from celery.exceptions import TaskRevokedError

from celery_etcdlock import LockConflict
from tests.integration.workers.conftest import Project


class TestCeleryOnce:
    def test_a_second_call_raises_while_the_first_is_queued_or_runs(self, working: Project) -> None:
        task = working.module.once
        first = task.delay(1, seconds=30.0)
        with pytest.raises(LockConflict) as already_queued:
            task.delay(1, seconds=30.0)
        assert already_queued.value.task_id == first.id
        working.bodies.wait_entered()
        with pytest.raises(LockConflict):
            task.delay(a=1, seconds=30.0)
        task.delay(2).get(timeout=30)
        working.bodies.end_all()
        first.get(timeout=30)
        assert task.delay(1, seconds=30.0).get(timeout=30)

    def test_graceful(self, project: Project) -> None:
        first = project.module.once_graceful.delay(1)
        assert project.module.once_graceful.delay(1).id == first.id

    def test_keys(self, project: Project) -> None:
        first = project.module.once_keys.delay(1, b=2)
        assert project.module.once_keys.delay(1, b=3).id == first.id
        assert project.module.once_keys.delay(2, b=2).id != first.id

    def test_unlock_before_run(self, working: Project) -> None:
        first = working.module.once_before_run.delay(1, seconds=30.0)
        working.bodies.wait_entered()
        second = working.module.once_before_run.delay(1, seconds=30.0)
        assert second.id != first.id
        working.bodies.end_all()
        assert second.get(timeout=30)

    def test_the_lock_is_freed_by_a_failure(self, working: Project) -> None:
        for _ in range(2):
            with pytest.raises(ValueError, match="on purpose"):
                working.module.once.delay(1, fail=True).get(timeout=30)


class TestCelerySingleton:
    def test_a_duplicate_gets_the_existing_result(self, working: Project) -> None:
        task = working.module.singleton
        first = task.delay(1, seconds=30.0)
        assert task.delay(1, seconds=30.0).id == first.id
        assert task.apply_async((1,), {"seconds": 30.0}).id == first.id
        working.bodies.wait_entered()
        assert task.delay(1, seconds=30.0).id == first.id
        working.bodies.end_all()
        assert first.get(timeout=30) == first.id
        again = task.delay(1, seconds=30.0)
        assert again.get(timeout=30) == again.id != first.id

    def test_unique_on(self, project: Project) -> None:
        first = project.module.singleton_on.delay(1, b=2)
        assert project.module.singleton_on.delay(1, b=3).id == first.id

    def test_raise_on_duplicate(self, project: Project) -> None:
        first = project.module.once.delay(7)
        with pytest.raises(LockConflict) as duplicate:
            project.module.once.delay(7)
        assert duplicate.value.task_id == first.id

    def test_a_chain_keeps_its_tail(self, working: Project) -> None:
        first = working.module.singleton.delay(1, seconds=30.0)
        working.bodies.wait_entered()
        tail = chain(working.module.singleton.si(1, seconds=30.0), working.module.plain.si())()
        with pytest.raises(TaskRevokedError, match=first.id):
            tail.get(timeout=30)
        working.bodies.end_all()
