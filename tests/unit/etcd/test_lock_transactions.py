"""What one in the queue reads is enough to go by, and doesn't grow with the queue."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_etcdlock.core.operations import (
    Enqueue,
    FenceSession,
    GrantLease,
    Promote,
)
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import (
    Present,
    Queued,
    SessionFenced,
)
from celery_etcdlock.etcd.etcd_store import EtcdStore
from tests.model.model_etcd import ModelEtcd

RECORD = Record(Delivery("task"), "proj.work", "host", 1, 1.0, 1, "broker")
LEASE = 7


class WaitQueue:
    """Keys t0, t1, ... under one name, in this order."""

    def __init__(self, limit: int) -> None:
        self.etcd = ModelEtcd()
        self.store = EtcdStore(self.etcd, "/p/")
        self.record = replace(RECORD, limit=limit)
        self.store.perform(GrantLease(LEASE, 30), 1)
        fenced = self.store.perform(FenceSession(LEASE), 1)
        assert isinstance(fenced, SessionFenced)
        self.epoch = fenced.epoch

    def join(self, token: str) -> Queued:
        reply = self.store.perform(Enqueue(LEASE, self.epoch, "a", token, self.record), 1)
        assert isinstance(reply, Queued)
        return reply

    def promote(self, token: str, revision: int) -> Present:
        reply = self.store.perform(Promote(LEASE, self.epoch, "a", token, self.record, revision, revision, True), 1)
        assert isinstance(reply, Present)
        return reply


@pytest.mark.parametrize(("limit", "seen"), [(1, ["t0", "t1", "t38", "t39"]), (2, ["t0", "t1", "t2", "t38", "t39"])])
def test_one_who_joins_a_long_line_reads_its_head_and_the_one_before(limit: int, seen: list[str]) -> None:
    queue = WaitQueue(limit)
    for number in range(39):
        queue.join(f"t{number}")
    assert [key.token for key in queue.join("t39").keys] == seen


def test_one_who_is_refused_reads_its_head_and_the_one_before_whoever_came_since() -> None:
    queue = WaitQueue(1)
    joined = [queue.join(f"t{number}") for number in range(40)]
    refused = queue.promote("t20", joined[20].revision)
    assert [key.token for key in refused.keys] == ["t0", "t1", "t19", "t20"]


def test_one_whose_key_was_put_anew_still_sees_it() -> None:
    queue = WaitQueue(1)
    joined = [queue.join(f"t{number}") for number in range(10)]
    queue.etcd.delete(b"/p/v1/a/t5")
    anew = queue.join("t5")
    refused = queue.promote("t5", joined[5].revision)
    assert [key.token for key in refused.keys] == ["t0", "t1", "t3", "t4", "t5"]
    assert refused.keys[-1].create_revision == anew.revision
