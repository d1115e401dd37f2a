"""New Relic: the transaction that it makes of a plain task, it makes of a locked one."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from celery_etcdlock import singleton_task
from tests.companions.packages import package
from tests.unit.tasks.lab import Lab, run_message

agent = package("newrelic.agent")
hooks = package("newrelic.hooks.application_celery")


@pytest.fixture(scope="module", autouse=True)
def instrumented() -> None:
    agent.initialize()
    hooks.instrument_celery_local(importlib.import_module("celery.local"))
    hooks.instrument_celery_app_trace(importlib.import_module("celery.app.trace"))


def test_as_without_us(lab: Lab) -> None:
    seen: list[Any] = []

    def body() -> None:
        lab.body()
        transaction = agent.current_transaction(active_only=False)
        seen.append(None if transaction is None else (transaction.name, transaction.group, transaction.background_task))

    for task in (
        lab.app.task(name="plain", shared=False)(body),
        singleton_task(app=lab.app, name="locked", shared=False)(body),
    ):
        result, message = lab.publish(task)
        run_message(lab.app, message)
        assert result.state == "SUCCESS"
    assert lab.bodies == ["UNLOCKED", "locked"]
    plain, locked = seen
    assert locked == (None if plain is None else (plain[0].replace("plain", "locked"), *plain[1:]))
    with lab.locks.lock("locked"):
        result, message = lab.publish(lab.app.tasks["locked"])
        run_message(lab.app, message)
    assert result.state == "REVOKED"
    assert lab.bodies == ["UNLOCKED", "locked"]
