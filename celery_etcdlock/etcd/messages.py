"""Protobuf messages of the part of etcd's API that we speak.

They are built from ``etcd.binpb``, the compiled form of ``etcd.proto``, in a descriptor pool of their own.
The default pool, which every generated ``*_pb2`` module of the process shares, isn't touched: so ours may live
beside etcd3, aetcd or any other package that registers etcd's protos under the same names, and no generated
code ties us to one protobuf release (3.20.3 and later all work).

Every message of ``etcd.proto`` is a class here, made when it is first asked for. They are typed ``Any``, since their
fields are known at run time only: ``TxnRequest(compare=[...])``, ``request.SerializeToString()``,
``TxnResponse.FromString(reply)``. Enum values are attributes of their message class (``Compare.EQUAL``) or, for
``AlarmType``, of this module.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from celery_etcdlock.etcd.errors import EtcdError

# AlarmType
NOSPACE = 1
CORRUPT = 2

#: Calls that are streams: our side stays open until we want no more, since a grpc-proxy takes its end for a "no".
WATCH = "/etcdserverpb.Watch/Watch"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"


@cache
def _pool() -> Any:
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(Path(__file__).with_name("etcd.binpb").read_bytes())
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def __getattr__(name: str) -> Any:
    try:
        descriptor = _pool().FindMessageTypeByName(f"etcdserverpb.{name}")
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no message {name!r}") from None
    if hasattr(message_factory, "GetMessageClass"):
        made = message_factory.GetMessageClass(descriptor)
    else:  # protobuf before 4.22
        made = message_factory.MessageFactory(_pool()).GetPrototype(descriptor)
    globals()[name] = made
    return made


@cache
def call_for(request_class: Any) -> tuple[str, Any]:
    """The path of the call that takes such a request, and the class of its reply."""
    services = _pool().FindFileByName("etcd.proto").services_by_name.values()
    calls = {method.input_type.name: method for service in services for method in service.methods}
    method = calls[request_class.DESCRIPTOR.name]
    reply = method.output_type.name
    return f"/{method.containing_service.full_name}/{method.name}", globals().get(reply) or __getattr__(reply)


def ask(transport: Any, request: Any, timeout_seconds: float, *, repeatable: bool = True) -> Any:
    """The reply to a request, which by default does no harm when it is applied twice. Raises EtcdError."""
    path, reply_class = call_for(request.__class__)
    sent = request.SerializeToString()
    return decoded(reply_class, transport.call(path, sent, timeout_seconds, repeatable=repeatable))


def decoded(message_class: Any, reply: bytes) -> Any:
    """A reply of etcd as a message; raises EtcdError when it isn't one."""
    try:
        return message_class.FromString(reply)
    except DecodeError as error:
        raise EtcdError(f"the server answered what isn't a {message_class.__name__}", maybe_applied=True) from error
