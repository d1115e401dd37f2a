"""Run in an interpreter of its own, with any protobuf: are our messages usable, and is the default pool untouched?

Stands alone on purpose (only protobuf is needed), so that it runs in environments that hold nothing else.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

if "etcd3" in sys.argv[1:]:
    import etcd3  # noqa: F401  registers etcd's own protos in the default pool first

for name in ("celery_etcdlock", "celery_etcdlock.etcd"):
    package = types.ModuleType(name)
    package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
    sys.modules[name] = package

from google import protobuf  # noqa: E402
from google.protobuf import descriptor_pool  # noqa: E402

from celery_etcdlock.etcd import messages as m  # noqa: E402

request = m.TxnRequest(
    compare=[m.Compare(key=b"a/", range_end=b"a0", target=m.Compare.CREATE, result=m.Compare.EQUAL, create_revision=0)],
    success=[m.RequestOp(request_txn=m.TxnRequest(success=[m.RequestOp(request_put=m.PutRequest(key=b"k"))]))],
)
wire = request.SerializeToString()
assert wire.hex() == "0a0d1001" + "1a02612f" + "2800" + "8204026130" + "1209220712051203" + "0a016b", wire.hex()
assert m.TxnRequest.FromString(wire) == request
compared = {"key": b"a/", "range_end": b"a0", "target": m.Compare.CREATE, "result": 0, "create_revision": 0}
put = {"request_put": {"key": b"k", "value": b"", "lease": 0}}
fields = {"compare": [compared], "success": [{"request_txn": {"success": [put]}}], "failure": []}
assert m.TxnRequest(**fields).SerializeToString() == wire, "a tree of fields makes another message"
assert request.success[0].WhichOneof("request") == "request_txn"
watch = m.WatchResponse(compact_revision=7, canceled=True, events=[m.Event(type=m.Event.DELETE)])
assert m.WatchResponse.FromString(watch.SerializeToString()).events[0].type == m.Event.DELETE
assert m.call_for(m.RangeRequest) == ("/etcdserverpb.KV/Range", m.RangeResponse)
assert m.call_for(m.AuthRoleGetRequest) == ("/etcdserverpb.Auth/RoleGet", m.AuthRoleGetResponse)
# fields that a newer etcd adds are ignored
assert m.LeaseKeepAliveResponse.FromString(b"\x10\x05\xf8\x7f\x01").ID == 5

if "etcd3" not in sys.argv[1:]:
    try:
        descriptor_pool.Default().FindMessageTypeByName("etcdserverpb.TxnRequest")
    except KeyError:
        pass
    else:
        raise SystemExit("our messages are in the default pool")
    # another package may register the same name in the default pool after us
    from google.protobuf import descriptor_pb2

    other = descriptor_pb2.FileDescriptorProto(name="rpc.proto", package="etcdserverpb", syntax="proto3")
    other.message_type.add(name="TxnRequest")
    descriptor_pool.Default().AddSerializedFile(other.SerializeToString())
print("ok, protobuf", protobuf.__version__)
