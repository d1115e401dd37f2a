"""A worker warns of waits that are longer than its broker lets a message be unacknowledged."""

from __future__ import annotations

import pytest
from celery import Celery

from celery_etcdlock import EtcdLocks, SingletonTask
from celery_etcdlock.core.policies import POLICIES
from celery_etcdlock.worker.broker_limit import broker_limit, waits_that_do_not_fit


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_that_waits_is_compared_with_the_brokers_limit(policy: str) -> None:
    app = Celery("limit", broker="redis://localhost/0", backend="cache+memory://", set_as_current=False)
    app.conf.etcdlock_endpoints = "memory://"
    app.conf.broker_transport_options = {"visibility_timeout": 60}

    @app.task(base=SingletonTask, name="task", on_conflict=policy, wait_timeout=3600, shared=False)
    def task() -> None: ...

    app.finalize()
    tasks = [app.tasks["task"]]
    warning = waits_that_do_not_fit(tasks, EtcdLocks.from_app(app).settings, broker_limit(app))
    assert (warning is None) is (policy in ("skip", "raise"))
