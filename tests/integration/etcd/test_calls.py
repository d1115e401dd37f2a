"""Calls and streams against a real etcd."""

from __future__ import annotations

import threading
import urllib.request
from typing import Any

import pytest

from celery_etcdlock.etcd import messages as m
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.errors import (
    Compacted,
    EtcdStatusError,
    LeaseExists,
    LeaseNotFound,
    TooManyOperations,
)
from tests.etcd_server import running_etcd

WATCH = "/etcdserverpb.Watch/Watch"


def put_op(key: bytes, value: bytes = b"") -> Any:
    return m.RequestOp(request_put=m.PutRequest(key=key, value=value))


def test_nested_transaction_and_compare_over_an_empty_range(api: Any) -> None:
    nobody = m.Compare(
        key=b"nested/", range_end=b"nested0", target=m.Compare.CREATE, result=m.Compare.EQUAL, create_revision=0
    )
    inner = m.TxnRequest(compare=[nobody], success=[put_op(b"nested/a", b"1")])
    request = m.TxnRequest(success=[m.RequestOp(request_txn=inner)])
    first = api("KV/Txn", request, m.TxnResponse)
    second = api("KV/Txn", request, m.TxnResponse)
    assert first.responses[0].response_txn.succeeded
    assert not second.responses[0].response_txn.succeeded
    assert first.header.raft_term > 0
    assert api.get(b"nested/a") == b"1"


@pytest.mark.parametrize(
    ("target", "field", "value"),
    [("VERSION", "version", 1), ("VALUE", "value", b"here"), ("LEASE", "lease", 0)],
)
def test_compare_targets(api: Any, target: str, field: str, value: Any) -> None:
    key = f"compare/{target}".encode()
    api.put(key, b"here")
    for wanted, succeeded in ((value, True), (b"x" if field == "value" else 77, False)):
        compare = m.Compare(key=key, target=getattr(m.Compare, target), **{field: wanted})
        assert api("KV/Txn", m.TxnRequest(compare=[compare]), m.TxnResponse).succeeded is succeeded


def test_mod_revision_guards_a_delete(api: Any) -> None:
    revision = api.put(b"guard", b"1").header.revision
    delete = m.RequestOp(request_delete_range=m.DeleteRangeRequest(key=b"guard"))
    for wanted, succeeded in ((revision - 1, False), (revision, True)):
        compare = m.Compare(key=b"guard", target=m.Compare.MOD, mod_revision=wanted)
        request = m.TxnRequest(compare=[compare], success=[delete])
        assert api("KV/Txn", request, m.TxnResponse).succeeded is succeeded
    assert api.get(b"guard") is None


def test_lease(api: Any) -> None:
    lease = 0x5EED
    granted = api("Lease/LeaseGrant", m.LeaseGrantRequest(ID=lease, TTL=60), m.LeaseGrantResponse)
    assert (lease, 60) == (granted.ID, granted.TTL)
    with pytest.raises(LeaseExists):
        api("Lease/LeaseGrant", m.LeaseGrantRequest(ID=lease, TTL=60), m.LeaseGrantResponse)
    api.put(b"leased", lease=lease)
    for _ in range(3):  # a bidirectional method, called like a unary one
        assert api("Lease/LeaseKeepAlive", m.LeaseKeepAliveRequest(ID=lease), m.LeaseKeepAliveResponse).TTL == 60
    live = api("Lease/LeaseTimeToLive", m.LeaseTimeToLiveRequest(ID=lease, keys=True), m.LeaseTimeToLiveResponse)
    assert (live.grantedTTL, list(live.keys)) == (60, [b"leased"])
    assert lease in [one.ID for one in api("Lease/LeaseLeases", m.LeaseLeasesRequest(), m.LeaseLeasesResponse).leases]
    api("Lease/LeaseRevoke", m.LeaseRevokeRequest(ID=lease), m.LeaseRevokeResponse)
    assert api.get(b"leased") is None
    with pytest.raises(LeaseNotFound):
        api("Lease/LeaseRevoke", m.LeaseRevokeRequest(ID=lease), m.LeaseRevokeResponse)
    with pytest.raises(LeaseNotFound):
        api.put(b"leased", lease=lease)
    assert api("Lease/LeaseKeepAlive", m.LeaseKeepAliveRequest(ID=lease), m.LeaseKeepAliveResponse).TTL <= 0


def test_too_many_operations_and_too_large_requests(api: Any) -> None:
    operations = [put_op(b"many/%d" % number) for number in range(129)]
    with pytest.raises(TooManyOperations):
        api("KV/Txn", m.TxnRequest(success=operations), m.TxnResponse)
    for size in (1_600_000, 6_000_000):  # refused by etcd, and by gRPC underneath it
        with pytest.raises(EtcdStatusError) as caught:
            api.put(b"large", b"x" * size)
        assert not caught.value.maybe_applied
    api.put(b"large", b"x" * 1_400_000)
    assert api.get(b"large") == b"x" * 1_400_000


def test_status_members_and_alarms(api: Any) -> None:
    status = api("Maintenance/Status", m.StatusRequest(), m.StatusResponse)
    assert status.version.startswith("3.")
    assert status.leader == status.header.member_id
    assert len(api("Cluster/MemberList", m.MemberListRequest(), m.MemberListResponse).members) == 1
    assert not api("Maintenance/Alarm", m.AlarmRequest(), m.AlarmResponse).alarms


def watch(client: EtcdClient, key: bytes, **more: Any) -> Any:
    request = m.WatchRequest(create_request=m.WatchCreateRequest(key=key, **more))
    return client.stream(WATCH, request.SerializeToString(), 30)


def test_watch(client: EtcdClient, api: Any) -> None:
    revision = api.put(b"watched", b"1").header.revision
    with watch(
        client, b"watched", start_revision=revision + 1, prev_kv=True, filters=[m.WatchCreateRequest.NOPUT]
    ) as stream:
        assert m.WatchResponse.FromString(next(stream)).created
        assert stream.receive(0.05) is None
        api.put(b"watched", b"2")  # filtered
        api("KV/DeleteRange", m.DeleteRangeRequest(key=b"watched"), m.DeleteRangeResponse)
        (event,) = m.WatchResponse.FromString(next(stream)).events
        assert (event.type, event.prev_kv.value) == (m.Event.DELETE, b"2")


def test_watch_from_a_compacted_revision(make_api: Any) -> None:
    with running_etcd() as server:  # of its own: compaction would hurt other tests' watches
        client = EtcdClient(server.endpoint)
        api = make_api(client)
        old = api.put(b"compacted", b"1").header.revision
        now = api.put(b"compacted", b"2").header.revision
        api("KV/Compact", m.CompactionRequest(revision=now), m.CompactionResponse)
        with watch(client, b"compacted", start_revision=old) as stream:
            answers = (m.WatchResponse.FromString(answer) for answer in stream)
            assert next(answer for answer in answers if answer.canceled).compact_revision == now
        with pytest.raises(Compacted):
            api("KV/Range", m.RangeRequest(key=b"compacted", revision=old), m.RangeResponse)


def test_watch_is_cancelled_at_the_server(client: EtcdClient, etcd: Any, until: Any) -> None:
    def watchers() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{etcd.ports[2]}/metrics", timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("etcd_debugging_mvcc_watcher_total"):
                    return float(line.split()[1])
        raise AssertionError

    before = watchers()
    with watch(client, b"cancelled") as stream:
        assert m.WatchResponse.FromString(next(stream)).created
        assert watchers() == before + 1
    until(lambda: watchers() == before)


def test_threads(client: EtcdClient, make_api: Any) -> None:
    api = make_api(client)
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(50):
                value = b"%d-%d" % (number, turn) * 50
                api.put(b"threads/%d" % number, value)
                assert api.get(b"threads/%d" % number) == value
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not problems
    assert len(client._pool.idle) <= 16
