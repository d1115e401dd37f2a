"""Sentry: errors and transactions as without us; a conflict that was asked for isn't an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from celery_etcdlock import singleton_task
from tests.companions.packages import package
from tests.unit.tasks.lab import Lab, run_message

sentry_sdk = package("sentry_sdk")
transports = package("sentry_sdk.transport")
integration = package("sentry_sdk.integrations.celery")


@pytest.fixture
def sent() -> Iterator[list[Any]]:
    items: list[Any] = []

    class Keeps(transports.Transport):  # type: ignore[misc,name-defined]
        def capture_envelope(self, envelope: Any) -> None:
            items.extend(item.payload.json for item in envelope.items if item.payload.json)

    sentry_sdk.init(
        dsn="http://key@localhost/1",
        transport=Keeps(),
        traces_sample_rate=1.0,
        default_integrations=False,
        integrations=[integration.CeleryIntegration()],
    )
    yield items
    sentry_sdk.init()


def run(lab: Lab, task: Any, sent: list[Any]) -> tuple[str, list[Any], list[Any]]:
    sent.clear()
    result, message = lab.publish(task)
    run_message(lab.app, message)
    sentry_sdk.flush()
    errors = [item["exception"]["values"][-1]["type"] for item in sent if "exception" in item]
    spans = [
        (item["transaction"], [span["op"] for span in item["spans"]])
        for item in sent
        if item.get("type") == "transaction"
    ]
    return result.state, errors, spans


@pytest.mark.parametrize("fails", [False, True])
def test_as_without_us(lab: Lab, sent: list[Any], fails: bool) -> None:
    def body() -> None:
        lab.body()
        if fails:
            raise ValueError("on purpose")

    plain = run(lab, lab.app.task(name="plain", shared=False)(body), sent)
    locked = run(lab, singleton_task(app=lab.app, name="locked", shared=False)(body), sent)
    assert lab.bodies == ["UNLOCKED", "locked"]
    assert locked == (plain[0], plain[1], [(name.replace("plain", "locked"), spans) for name, spans in plain[2]])
    assert locked[1] == (["ValueError"] if fails else [])
    assert locked[2]


@pytest.mark.parametrize("policy", ["skip", "raise", "retry"])
def test_a_conflict_is_no_error(lab: Lab, sent: list[Any], policy: str) -> None:
    task = singleton_task(app=lab.app, name="task", shared=False, on_conflict=policy)(lab.body)
    with lab.locks.lock("task"):
        state, errors, _ = run(lab, task, sent)
    assert state == {"skip": "REVOKED", "raise": "FAILURE", "retry": "RETRY"}[policy]
    assert errors == []
    assert lab.bodies == []
