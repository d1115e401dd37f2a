"""The main job on two worker containers: over each broker, with the locks in three etcd members."""

from __future__ import annotations

import pytest
from celery.exceptions import TaskRevokedError
from pytest_celery import CeleryTestSetup

from celery_etcdlock.testing import assert_free, assert_locked
from tests.e2e.evidence import Evidence
from tests.e2e.results import outcome
from tests.e2e.tasks import per_key, single


@pytest.mark.parametrize("broker", ["redis", "rabbitmq classic", "rabbitmq quorum"])
def test_duplicates_are_skipped_and_retried_ones_all_run(
    celery_setup: CeleryTestSetup, evidence: Evidence, broker: str
) -> None:
    if broker != "redis":
        _, queues = celery_setup.broker.container.exec_run("rabbitmqctl -q list_queues name type")
        assert f"celery\t{broker.removeprefix('rabbitmq ')}" in queues.decode()
    first = single.delay(60.0)
    evidence.wait_entered()
    assert_locked(single)
    others = [single.delay(60.0) for _ in range(4)]
    for other in others:
        why = other.get(timeout=30, propagate=False)
        assert isinstance(why, TaskRevokedError)
        assert f"is held by task {first.id}" in str(why)
    assert [other.state for other in others] == ["REVOKED"] * 4
    retried = [per_key.delay(f"k{number % 2}", 0.05) for number in range(8)]
    assert all(isinstance(outcome(result, 60), int) for result in retried)
    evidence.end_all()
    assert isinstance(outcome(first, 30), int)
    assert_free(single)
    assert len(evidence.events("enter")) == 9
    assert evidence.overlaps() == []
