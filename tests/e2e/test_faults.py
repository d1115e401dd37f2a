"""A member of etcd or a worker dies, stops or is cut off in mid-task: two workers never believe in one lock at once."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

import docker
import pytest
from celery.canvas import Signature
from celery.result import AsyncResult
from pytest_celery import CeleryTestSetup, CeleryTestWorker

from celery_etcdlock import LockConflict, LockLost
from celery_etcdlock.contrib.pytest_celery import EtcdCluster, EtcdTestNode
from tests.e2e.evidence import Event, Evidence
from tests.e2e.results import outcome
from tests.e2e.tasks import per_key, strict


def leader(cluster: EtcdCluster) -> EtcdTestNode:
    for node in cluster:
        request = urllib.request.Request(f"http://{node.endpoints[0]}/v3/maintenance/status", b"{}")
        with urllib.request.urlopen(request, timeout=5) as answer:
            status: dict[str, Any] = json.load(answer)
        if status["leader"] == status["header"]["member_id"]:
            return node
    raise AssertionError("no leader")


def holder_of(setup: CeleryTestSetup, entered: Event) -> CeleryTestWorker:
    [worker] = [worker for worker in setup.worker_cluster if worker.container.id.startswith(entered["host"])]
    return worker


def fire_past(signature: Signature) -> list[AsyncResult]:
    """Two calls: Redis gives one message to a client that waits for it, and may get it only much later."""
    return [signature.delay() for _ in range(2)]


class TestEtcd:
    @pytest.fixture
    def ttl(self) -> int:
        """Longer than an election, which takes up to three seconds."""
        return 10

    @pytest.mark.parametrize("fault", ["killed", "paused"])
    def test_the_leader_fails_in_mid_task(
        self, celery_setup: CeleryTestSetup, celery_etcd: EtcdCluster, evidence: Evidence, fault: str
    ) -> None:
        result = strict.delay(120.0)
        token = evidence.wait_entered()["token"]
        node = leader(celery_etcd)
        if fault == "killed":
            node.kill()
        else:
            node.pause()
        failed_at = time.monotonic()
        try:
            # Longer than the TTL: the lock outlives the leader only if renewals go on with another one.
            while time.monotonic() < failed_at + 12:
                with pytest.raises(LockConflict, match=result.id):
                    outcome(strict.delay(), 60)
        finally:
            if fault == "paused":
                node.resume()
        evidence.end_all()
        assert outcome(result, 30) == token
        assert evidence.wait_exited(token)["lost"] is False
        assert outcome(strict.delay(), 30) > token
        assert evidence.overlaps() == []


def test_a_killed_worker(celery_setup: CeleryTestSetup, evidence: Evidence) -> None:
    per_key.delay("a", 120.0)
    entered = evidence.wait_entered()
    holder_of(celery_setup, entered).kill()
    # Sent after the death, or the dead worker's prefetched messages would be this one's grave too.
    waiting = per_key.delay("a")
    second = evidence.wait_entered(2)
    assert second["host"] != entered["host"]
    assert isinstance(outcome(waiting, 30), int)
    assert evidence.overlaps() == []


def test_a_paused_worker(celery_setup: CeleryTestSetup, evidence: Evidence) -> None:
    result = per_key.delay("a", 120.0)
    entered = evidence.wait_entered()
    holder = holder_of(celery_setup, entered).container._container
    holder.pause()
    try:
        waiting = fire_past(per_key.s("a"))
        second = evidence.wait_entered(2)
        assert second["host"] != entered["host"]
    finally:
        holder.unpause()
    # It wakes up in the middle of its body, and must know.
    with pytest.raises(LockLost):
        outcome(result, 30)
    assert evidence.wait_exited(entered["token"])["lost"] is True
    assert all(isinstance(outcome(each, 30), int) for each in waiting)
    assert evidence.overlaps() == []


def test_a_worker_that_is_cut_off_and_comes_back(
    celery_setup: CeleryTestSetup, evidence: Evidence, default_pytest_celery_network: Any
) -> None:
    per_key.delay("a", 120.0)
    entered = evidence.wait_entered()
    holder = holder_of(celery_setup, entered)
    client = docker.from_env()
    network = client.networks.get(default_pytest_celery_network.id)
    network.disconnect(holder.container.id)
    try:
        waiting = fire_past(per_key.s("a"))
        second = evidence.wait_entered(2)
        assert second["host"] != entered["host"]
        # It runs on all by itself, and stops believing in time.
        assert evidence.wait_exited(entered["token"])["lost"] is True
    finally:
        network.connect(holder.container.id)
        client.close()
    assert evidence.overlaps() == []
    # Back on the network it is a worker like any other.
    evidence.end_all()
    results = [*waiting, *(per_key.delay(f"k{number}", 0.1) for number in range(6))]
    assert all(isinstance(outcome(result, 60), int) for result in results)
