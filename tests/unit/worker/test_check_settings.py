"""What a worker says at its start about policies that it can't carry out. It makes no connection for that."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from kombu import Exchange, Queue

from celery_etcdlock import EtcdLocks, SingletonTask
from celery_etcdlock.worker.check_settings import check_policies


def check(backend: str | None = "cache+memory://", conf: dict[str, Any] | None = None, **options: Any) -> None:
    app = Celery("checked", broker="memory://", backend=backend, set_as_current=False)
    app.conf.update(etcdlock_endpoints="memory://", **(conf or {}))

    @app.task(base=SingletonTask, name="report", shared=False, **options)
    def report() -> None: ...

    app.finalize()
    task = app.tasks["report"]
    check_policies(app, task, EtcdLocks.from_app(app).settings)


QUORUM_QUEUE = {"task_queues": [Queue("q", Exchange("topical", "topic"), queue_arguments={"x-queue-type": "quorum"})]}


@pytest.mark.parametrize("policy", ["skip", "raise", "retry", "wait", "join", "replace"])
def test_all_policies_are_fine_where_results_and_delays_are(policy: str) -> None:
    check(on_conflict=policy)
    check(on_conflict=policy, conf=QUORUM_QUEUE | {"broker_native_delayed_delivery_queue_type": "quorum"})


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"backend": "disabled://"}, "the result backend is DisabledBackend"),
        ({"backend": "rpc://"}, "the result backend is RPCBackend"),
    ],
)
@pytest.mark.parametrize(
    "policy",
    [
        {"on_conflict": "join"},
        {"lock": "until_executed", "on_conflict": {"enqueue": "join", "run": "skip"}},
        {"conf": {"etcdlock_on_conflict": "join"}},
    ],
)
def test_join_needs_results_that_are_kept(options: dict[str, Any], policy: dict[str, Any], why: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=why) as caught:
        check(**options, **policy)
    assert "task 'report': on_conflict='join'" in str(caught.value)
    assert "use a backend that keeps results (Redis" in str(caught.value)


def test_join_by_the_setting_needs_results_of_each_task() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"task 'report': on_conflict='join' .* but ignore_result is set"):
        check(ignore_result=True, conf={"etcdlock_on_conflict": "join"})


def test_other_policies_need_no_backend() -> None:
    check(backend="disabled://", on_conflict="wait")
    check(backend="disabled://", on_conflict="skip", conf={"etcdlock_on_conflict": "join"})


@pytest.mark.parametrize("policy", ["wait", "replace"])
@pytest.mark.parametrize("queues", [{"task_default_queue_type": "quorum"}, QUORUM_QUEUE])
def test_waiting_on_a_quorum_queue_needs_delays(policy: str, queues: dict[str, Any]) -> None:
    conf = queues | {"broker_native_delayed_delivery_queue_type": None}  # as before Celery 5.5
    with pytest.raises(ImproperlyConfigured, match="broker_native_delayed_delivery_queue_type") as caught:
        check(on_conflict=policy, conf=conf)
    assert f"task 'report': on_conflict={policy!r}" in str(caught.value)
    assert "use on_conflict='skip' or 'raise', a classic queue, or a newer Celery" in str(caught.value)
    check(on_conflict="skip", conf=conf)
