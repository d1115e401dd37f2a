"""Protobuf messages of the part of etcd's API that we speak.

They are built from ``etcd.binpb``, the compiled form of ``etcd.proto``, in a descriptor pool of their own.
The default pool, which every generated ``*_pb2`` module of the process shares, isn't touched: so ours may live
beside etcd3, aetcd or any other package that registers etcd's protos under the same names, and no generated
code ties us to one protobuf release (3.20.3 and later all work).

Every name below is a message class. They are typed ``Any``, since their fields are known at run time only:
``TxnRequest(compare=[...])``, ``request.SerializeToString()``, ``TxnResponse.FromString(reply)``. Enum values
are attributes of their message class (``Compare.EQUAL``) or, for ``AlarmType``, of this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = [
    "CORRUPT",
    "NONE",
    "NOSPACE",
    "AlarmMember",
    "AlarmRequest",
    "AlarmResponse",
    "AuthDisableRequest",
    "AuthDisableResponse",
    "AuthEnableRequest",
    "AuthEnableResponse",
    "AuthRoleAddRequest",
    "AuthRoleAddResponse",
    "AuthRoleGetRequest",
    "AuthRoleGetResponse",
    "AuthRoleGrantPermissionRequest",
    "AuthRoleGrantPermissionResponse",
    "AuthStatusRequest",
    "AuthStatusResponse",
    "AuthUserAddRequest",
    "AuthUserAddResponse",
    "AuthUserChangePasswordRequest",
    "AuthUserChangePasswordResponse",
    "AuthUserGetRequest",
    "AuthUserGetResponse",
    "AuthUserGrantRoleRequest",
    "AuthUserGrantRoleResponse",
    "AuthenticateRequest",
    "AuthenticateResponse",
    "CompactionRequest",
    "CompactionResponse",
    "Compare",
    "DeleteRangeRequest",
    "DeleteRangeResponse",
    "Event",
    "KeyValue",
    "LeaseGrantRequest",
    "LeaseGrantResponse",
    "LeaseKeepAliveRequest",
    "LeaseKeepAliveResponse",
    "LeaseLeasesRequest",
    "LeaseLeasesResponse",
    "LeaseRevokeRequest",
    "LeaseRevokeResponse",
    "LeaseStatus",
    "LeaseTimeToLiveRequest",
    "LeaseTimeToLiveResponse",
    "Member",
    "MemberListRequest",
    "MemberListResponse",
    "Permission",
    "PutRequest",
    "PutResponse",
    "RangeRequest",
    "RangeResponse",
    "RequestOp",
    "ResponseHeader",
    "ResponseOp",
    "StatusRequest",
    "StatusResponse",
    "TxnRequest",
    "TxnResponse",
    "UserAddOptions",
    "WatchCancelRequest",
    "WatchCreateRequest",
    "WatchProgressRequest",
    "WatchRequest",
    "WatchResponse",
]


def _load() -> Any:
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(Path(__file__).with_name("etcd.binpb").read_bytes())
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_pool = _load()


def _message(name: str) -> Any:
    descriptor = _pool.FindMessageTypeByName(f"etcdserverpb.{name}")
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(_pool).GetPrototype(descriptor)  # protobuf before 4.22


ResponseHeader: Any = _message("ResponseHeader")
KeyValue: Any = _message("KeyValue")
Event: Any = _message("Event")
RangeRequest: Any = _message("RangeRequest")
RangeResponse: Any = _message("RangeResponse")
PutRequest: Any = _message("PutRequest")
PutResponse: Any = _message("PutResponse")
DeleteRangeRequest: Any = _message("DeleteRangeRequest")
DeleteRangeResponse: Any = _message("DeleteRangeResponse")
Compare: Any = _message("Compare")
RequestOp: Any = _message("RequestOp")
ResponseOp: Any = _message("ResponseOp")
TxnRequest: Any = _message("TxnRequest")
TxnResponse: Any = _message("TxnResponse")
CompactionRequest: Any = _message("CompactionRequest")
CompactionResponse: Any = _message("CompactionResponse")
LeaseGrantRequest: Any = _message("LeaseGrantRequest")
LeaseGrantResponse: Any = _message("LeaseGrantResponse")
LeaseRevokeRequest: Any = _message("LeaseRevokeRequest")
LeaseRevokeResponse: Any = _message("LeaseRevokeResponse")
LeaseKeepAliveRequest: Any = _message("LeaseKeepAliveRequest")
LeaseKeepAliveResponse: Any = _message("LeaseKeepAliveResponse")
LeaseTimeToLiveRequest: Any = _message("LeaseTimeToLiveRequest")
LeaseTimeToLiveResponse: Any = _message("LeaseTimeToLiveResponse")
LeaseLeasesRequest: Any = _message("LeaseLeasesRequest")
LeaseStatus: Any = _message("LeaseStatus")
LeaseLeasesResponse: Any = _message("LeaseLeasesResponse")
WatchRequest: Any = _message("WatchRequest")
WatchCreateRequest: Any = _message("WatchCreateRequest")
WatchCancelRequest: Any = _message("WatchCancelRequest")
WatchProgressRequest: Any = _message("WatchProgressRequest")
WatchResponse: Any = _message("WatchResponse")
Member: Any = _message("Member")
MemberListRequest: Any = _message("MemberListRequest")
MemberListResponse: Any = _message("MemberListResponse")
AlarmRequest: Any = _message("AlarmRequest")
AlarmMember: Any = _message("AlarmMember")
AlarmResponse: Any = _message("AlarmResponse")
StatusRequest: Any = _message("StatusRequest")
StatusResponse: Any = _message("StatusResponse")
Permission: Any = _message("Permission")
UserAddOptions: Any = _message("UserAddOptions")
AuthenticateRequest: Any = _message("AuthenticateRequest")
AuthenticateResponse: Any = _message("AuthenticateResponse")
AuthEnableRequest: Any = _message("AuthEnableRequest")
AuthEnableResponse: Any = _message("AuthEnableResponse")
AuthDisableRequest: Any = _message("AuthDisableRequest")
AuthDisableResponse: Any = _message("AuthDisableResponse")
AuthStatusRequest: Any = _message("AuthStatusRequest")
AuthStatusResponse: Any = _message("AuthStatusResponse")
AuthUserAddRequest: Any = _message("AuthUserAddRequest")
AuthUserAddResponse: Any = _message("AuthUserAddResponse")
AuthUserGetRequest: Any = _message("AuthUserGetRequest")
AuthUserGetResponse: Any = _message("AuthUserGetResponse")
AuthUserChangePasswordRequest: Any = _message("AuthUserChangePasswordRequest")
AuthUserChangePasswordResponse: Any = _message("AuthUserChangePasswordResponse")
AuthUserGrantRoleRequest: Any = _message("AuthUserGrantRoleRequest")
AuthUserGrantRoleResponse: Any = _message("AuthUserGrantRoleResponse")
AuthRoleAddRequest: Any = _message("AuthRoleAddRequest")
AuthRoleAddResponse: Any = _message("AuthRoleAddResponse")
AuthRoleGetRequest: Any = _message("AuthRoleGetRequest")
AuthRoleGetResponse: Any = _message("AuthRoleGetResponse")
AuthRoleGrantPermissionRequest: Any = _message("AuthRoleGrantPermissionRequest")
AuthRoleGrantPermissionResponse: Any = _message("AuthRoleGrantPermissionResponse")

# AlarmType
NONE = 0
NOSPACE = 1
CORRUPT = 2
