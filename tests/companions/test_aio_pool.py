"""celery-aio-pool: a coroutine holds its lock until it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from celery.app import trace

from celery_etcdlock import current_lock, singleton_task
from tests.companions.packages import package
from tests.unit.tasks.lab import Lab, run_message

aio_pool = package("celery_aio_pool")


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = trace.build_tracer
    aio_pool.patch_celery_tracer()
    # It takes Celery's stack protection away, which run_message puts up.
    monkeypatch.setattr(trace, "_install_stack_protection", lambda: None)
    yield
    trace.build_tracer = before


@pytest.mark.parametrize("bind", [False, True])
def test_until_it_has_ended(lab: Lab, bind: bool) -> None:
    seen: list[Any] = []

    async def body() -> int:
        for _ in range(2):
            lock = current_lock()
            seen.append((lock.name, lock.fencing_token, lock.lost, len(lab.locks.holders("task"))))
            await asyncio.sleep(0.01)
        return 7

    async def bound(self: Any) -> int:
        assert self.name == "task"
        return await body()

    task = singleton_task(app=lab.app, name="task", shared=False, bind=bind)(bound if bind else body)
    result, message = lab.publish(task)
    run_message(lab.app, message)
    assert result.get(timeout=5) == 7
    assert [name for name, *_ in seen] == ["task", "task"]
    assert seen[0] == seen[1]
    assert seen[0][2:] == (False, 1)
    assert not lab.locks.holders("task")


@pytest.mark.parametrize(("policy", "state"), [("skip", "REVOKED"), ("raise", "FAILURE"), ("retry", "RETRY")])
def test_a_conflict(lab: Lab, policy: str, state: str) -> None:
    async def body() -> None:
        lab.body()

    task = singleton_task(app=lab.app, name="task", shared=False, on_conflict=policy)(body)
    with lab.locks.lock("task"):
        result, message = lab.publish(task)
        run_message(lab.app, message)
    assert result.state == state
    assert lab.bodies == []


def test_a_plain_body(lab: Lab) -> None:
    task = singleton_task(app=lab.app, name="task", shared=False)(lab.body)
    result, message = lab.publish(task, 3)
    run_message(lab.app, message)
    assert result.get(timeout=5) == 3
    assert lab.bodies == ["task"]
