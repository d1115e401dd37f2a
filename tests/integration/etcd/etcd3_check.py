# ruff: noqa: PT017
"""Run in an environment that holds python-etcd3 0.12.0: its channel carries our calls, beside its own messages."""

from __future__ import annotations

import os
import sys
import time
import types
from pathlib import Path

import etcd3
import grpc

ROOT = Path(__file__).resolve().parents[3]
for name in ("celery_etcdlock", "celery_etcdlock.etcd"):  # this environment has no Celery: skip the packages' own code
    package = types.ModuleType(name)
    package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
    sys.modules[name] = package

from celery_etcdlock.etcd import messages as m  # noqa: E402
from celery_etcdlock.etcd.errors import (  # noqa: E402
    ConnectFailed,
    ConnectionLost,
    DeadlinePassed,
    EtcdStatusError,
    LeaseNotFound,
    StatusCode,
)
from celery_etcdlock.etcd.grpcio_transport import GrpcTransport  # noqa: E402

host, port = sys.argv[1].split(":")
login_host, login_port = sys.argv[2].split(":")
made = []


def factory() -> object:
    made.append(os.getpid())
    return etcd3.client(host=host, port=int(port))


# ours and etcd3's messages are side by side and know nothing of each other
assert etcd3.etcdrpc.TxnRequest is not m.TxnRequest
assert etcd3.etcdrpc.PutRequest(key=b"k").SerializeToString() == m.PutRequest(key=b"k").SerializeToString()

transport = GrpcTransport(factory)
assert not made, "nothing is made before it is needed"
compare = m.Compare(key=b"etcd3", target=m.Compare.CREATE, create_revision=0)
put = m.RequestOp(request_put=m.PutRequest(key=b"etcd3", value=b"1"))
txn = m.TxnRequest(compare=[compare], success=[put]).SerializeToString()
first = m.TxnResponse.FromString(transport.call("/etcdserverpb.KV/Txn", txn, 5))
assert first.succeeded
assert not m.TxnResponse.FromString(transport.call("/etcdserverpb.KV/Txn", txn, 5, repeatable=True)).succeeded
assert etcd3.client(host=host, port=int(port)).get("etcd3")[0] == b"1"

# docs/locks.md: a transaction of one's own that a lock's key guards, by its mod revision
client = etcd3.client(host=host, port=int(port))
key, fencing_token = (
    b"etcd3",
    m.TxnResponse.FromString(
        transport.call("/etcdserverpb.KV/Txn", m.TxnRequest(success=[put]).SerializeToString(), 5)
    ).header.revision,
)
for token, is_ours in ((fencing_token, True), (fencing_token - 1, False)):
    done, _ = client.transaction(
        compare=[client.transactions.mod(key) == token],
        success=[client.transactions.put("guarded", "x")],
        failure=[],
    )
    assert done is is_ours

lease = m.LeaseGrantRequest(ID=77, TTL=60).SerializeToString()
transport.call("/etcdserverpb.Lease/LeaseGrant", lease, 5)
keepalive = m.LeaseKeepAliveRequest(ID=77).SerializeToString()
reply = m.LeaseKeepAliveResponse.FromString(transport.call("/etcdserverpb.Lease/LeaseKeepAlive", keepalive, 5))
assert reply.TTL == 60

create = m.WatchCreateRequest(key=b"etcd3", start_revision=first.header.revision)
watch = m.WatchRequest(create_request=create).SerializeToString()
with transport.stream("/etcdserverpb.Watch/Watch", watch, 10) as answers:
    assert m.WatchResponse.FromString(next(answers)).created
    assert m.WatchResponse.FromString(next(answers)).events[0].kv.value == b"1"
    transport.call("/etcdserverpb.KV/Put", m.PutRequest(key=b"etcd3", value=b"2").SerializeToString(), 5)
    assert m.WatchResponse.FromString(next(answers)).events[0].kv.value == b"2"
try:
    with transport.stream("/etcdserverpb.Watch/Watch", watch, 0.3) as answers:
        for _ in answers:
            pass
except DeadlinePassed:
    pass
else:
    raise SystemExit("a stream had no deadline")

try:
    transport.call("/etcdserverpb.Lease/LeaseRevoke", m.LeaseRevokeRequest(ID=78).SerializeToString(), 5)
except LeaseNotFound as error:
    assert not error.maybe_applied
else:
    raise SystemExit("no error")
try:
    transport.call("/etcdserverpb.KV/Nonsense", b"", 5)
except EtcdStatusError as error:
    assert error.code is StatusCode.UNIMPLEMENTED
else:
    raise SystemExit("no error")
try:
    GrpcTransport(lambda: grpc.insecure_channel("127.0.0.1:1")).call("/x/y", b"", 5)
except ConnectFailed as error:
    assert not error.maybe_applied
else:
    raise SystemExit("no error")
assert made == [os.getpid()], "one client for all calls"
transport.close()
transport.call("/etcdserverpb.KV/Txn", txn, 5)
assert len(made) == 2

# a user who logs in: the token of etcd3's client is sent along, and a dead one is replaced
logins = []


def login() -> object:
    logins.append(1)
    return etcd3.client(host=login_host, port=int(login_port), user="root", password="rootpw")


transport = GrpcTransport(login)
transport.call("/etcdserverpb.KV/Put", m.PutRequest(key=b"k").SerializeToString(), 5)
time.sleep(3)  # longer than the token lives
transport.call("/etcdserverpb.KV/Put", m.PutRequest(key=b"k").SerializeToString(), 5)
assert len(logins) == 2, logins
time.sleep(3)
watch = m.WatchRequest(create_request=m.WatchCreateRequest(key=b"k", start_revision=1)).SerializeToString()
with transport.stream("/etcdserverpb.Watch/Watch", watch, 10) as answers:
    answer = m.WatchResponse.FromString(next(answers))
    assert not answer.canceled, answer
    cancel = answers.cancel
    assert m.WatchResponse.FromString(next(answers)).events
    cancel()
    try:
        next(answers)
    except (ConnectionLost, EtcdStatusError, StopIteration):
        pass
    else:
        raise SystemExit("a cancelled stream goes on")
print("ok")
