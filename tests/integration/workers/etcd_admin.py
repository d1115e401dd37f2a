"""What an administrator does to locks behind their holders' backs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.client import EtcdClient

if TYPE_CHECKING:
    from tests.integration.workers.conftest import Project

SECONDS = 5.0


class Admin:
    """Reads and hurts the locks of one project."""

    def __init__(self, project: Project, endpoint: str) -> None:
        self._client = EtcdClient(endpoint)
        self._prefix = f"/celery-etcdlock/{project.name}/"

    def _call(self, method: str, request: object, reply: type) -> object:
        payload = request.SerializeToString()  # type: ignore[attr-defined]
        answer = self._client.call(f"/etcdserverpb.{method}", payload, SECONDS)
        return reply.FromString(answer)  # type: ignore[attr-defined]

    def _range_of(self, name: str) -> tuple[bytes, bytes]:
        start = f"{self._prefix}v1/{escape_name(name)}/".encode()
        return start, start[:-1] + b"0"

    def keys(self, name: str) -> list[object]:
        return self._keys(*self._range_of(name))

    def all_keys(self) -> list[object]:
        """Of all locks of the project."""
        start = f"{self._prefix}v1/".encode()
        return self._keys(start, start[:-1] + b"0")

    def _keys(self, key: bytes, end: bytes) -> list[object]:
        reply = self._call("KV/Range", messages.RangeRequest(key=key, range_end=end), messages.RangeResponse)
        return list(reply.kvs)  # type: ignore[attr-defined]

    def delete_keys(self, name: str) -> None:
        """The lease lives on."""
        key, end = self._range_of(name)
        self._call("KV/DeleteRange", messages.DeleteRangeRequest(key=key, range_end=end), messages.DeleteRangeResponse)

    def revoke_lease_of(self, name: str) -> None:
        [kv] = self.keys(name)
        request = messages.LeaseRevokeRequest(ID=kv.lease)  # type: ignore[attr-defined]
        self._call("Lease/LeaseRevoke", request, messages.LeaseRevokeResponse)

    def close(self) -> None:
        self._client.close()
