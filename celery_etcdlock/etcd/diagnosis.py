"""Checks an etcd cluster for what locks need: reached, healthy, allowed, roomy. Each check says what to do.

Nothing is changed but for one short-lived key under the prefix, which shows that writing works.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celery_etcdlock.core.check_results import CheckResult, Level, version_check_result
from celery_etcdlock.core.roles import role_commands
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.errors import AuthenticationFailed, Compacted, EtcdStatusError, PermissionDenied, StatusCode
from celery_etcdlock.etcd.key_layout import end_of

#: etcd's default quota, used where a server doesn't tell its own (before 3.6).
DEFAULT_QUOTA_BYTES = 2 * 1024**3
#: Revisions after which an etcd that compacts would have done so.
MANY_REVISIONS = 100_000
PROBE_TTL_SECONDS = 10

OpenClient = Callable[[tuple[str, ...]], EtcdClient]


def diagnose(
    open_client: OpenClient,
    endpoints: tuple[str, ...],
    *,
    prefix: str,
    username: str | None,
    ttl_seconds: int,
    timeout_seconds: float,
) -> Iterator[CheckResult]:
    """Findings, one by one as they are made. Doesn't raise for what it can report."""
    statuses: dict[str, Any] = {}
    refused: list[str] = []
    for endpoint in endpoints:
        yield from _endpoint(open_client, endpoint, timeout_seconds, statuses, refused)
    if refused and not statuses:
        text = f"{refused[0]} answered, but refused the login, so nothing more can be checked"
        remedy = "; ".join(["as etcd's root, a user that may lock and one that may look", *role_commands(prefix)])
        yield CheckResult(Level.BROKEN, "login", text, remedy)
        return
    if not statuses:
        remedy = "check etcdlock_endpoints, the network, and the certificates"
        yield CheckResult(Level.BROKEN, "etcd", "no endpoint answered, so nothing more can be checked", remedy)
        return
    yield from _one_cluster(statuses)
    client = open_client(tuple(statuses))
    try:
        check = _Cluster(client, prefix, timeout_seconds)
        for check_results in (
            check.members(len(endpoints)),
            check.alarms(),
            check.login(username),
            check.permissions(username),
            check.probe(ttl_seconds),
            check.room(statuses),
            check.compaction(),
        ):
            yield from _reported(check_results)
    finally:
        client.close()


def _reported(check_results: Iterator[CheckResult]) -> Iterator[CheckResult]:
    try:
        yield from check_results
    except LockUnavailable as error:
        yield CheckResult(Level.BROKEN, "etcd", str(error))


def _endpoint(
    open_client: OpenClient, endpoint: str, timeout_seconds: float, statuses: dict[str, Any], refused: list[str]
) -> Iterator[CheckResult]:
    client = open_client((endpoint,))
    shown = str(client.endpoints[0])
    tls = client.endpoints[0].tls
    try:
        request = messages.StatusRequest().SerializeToString()
        answer = client.call("/etcdserverpb.Maintenance/Status", request, timeout_seconds, repeatable=True)
    except AuthenticationFailed as error:
        refused.append(shown)
        remedy = "check etcdlock_username and etcdlock_password (or the client's certificate)"
        yield CheckResult(Level.BROKEN, f"endpoint {shown}", f"it answered, but refused the login: {error}", remedy)
        return
    except LockUnavailable as error:
        remedy = "" if len(str(error)) > 120 else "is it running, and is the address that of its client port?"
        yield CheckResult(Level.BROKEN, f"endpoint {shown}", str(error), remedy)
        return
    finally:
        client.close()
    status = statuses[endpoint] = messages.decoded(messages.StatusResponse, answer)
    yield CheckResult(Level.OK, f"endpoint {shown}", f"answers, {'TLS' if tls else 'no TLS'}")
    if not tls and not shown.split("//")[-1].startswith(("127.", "localhost", "[::1]")):
        remedy = "use https:// endpoints, with etcdlock_ca_cert"
        yield CheckResult(Level.WARNING, f"endpoint {shown}", "no TLS: passwords and locks travel in the clear", remedy)
    yield version_check_result(shown, status.version)
    if not status.leader:
        remedy = "bring back a majority of the members"
        yield CheckResult(Level.BROKEN, f"endpoint {shown}", "this member sees no leader", remedy)
    if status.isLearner:
        remedy = "leave it out of etcdlock_endpoints until it is promoted"
        yield CheckResult(Level.WARNING, f"endpoint {shown}", "is a learner, which serves no locks", remedy)
    for error_text in status.errors:
        yield CheckResult(Level.BROKEN, f"endpoint {shown}", f"reports: {error_text}")


def _one_cluster(statuses: Mapping[str, Any]) -> Iterator[CheckResult]:
    clusters = {status.header.cluster_id for status in statuses.values()}
    if len(clusters) > 1:
        text = f"the endpoints belong to {len(clusters)} different clusters: each would give the same lock away"
        yield CheckResult(Level.BROKEN, "endpoints", text, "name the members of one cluster in etcdlock_endpoints")


class _Cluster:
    """Checks that any member can answer."""

    def __init__(self, client: EtcdClient, prefix: str, timeout_seconds: float) -> None:
        self._client = client
        self._prefix = prefix
        self._timeout_seconds = timeout_seconds
        self._revision = 0
        self._looks_only = False

    def _call(self, method: str, request: Any, reply: Any) -> Any:
        path = f"/etcdserverpb.{method}"
        answer = self._client.call(path, request.SerializeToString(), self._timeout_seconds, repeatable=True)
        return messages.decoded(reply, answer)

    def members(self, named: int) -> Iterator[CheckResult]:
        reply = self._call("Cluster/MemberList", messages.MemberListRequest(), messages.MemberListResponse)
        voters = [member for member in reply.members if not member.isLearner]
        text = f"{len(voters)} {_members(len(voters))}, {named} named in etcdlock_endpoints"
        if len(voters) == 1:
            yield CheckResult(
                Level.WARNING, "cluster", f"{text}: when this one is down, no lock can be had", "run three"
            )
        elif named < len(voters):
            yield CheckResult(Level.WARNING, "cluster", text, "name all of them, so that any may fail")
        elif len(voters) % 2 == 0:
            yield CheckResult(Level.WARNING, "cluster", f"{text}: an even number survives no more failures", "add one")
        else:
            yield CheckResult(Level.OK, "cluster", text)

    def alarms(self) -> Iterator[CheckResult]:
        request = messages.AlarmRequest(action=messages.AlarmRequest.GET)
        try:
            reply = self._call("Maintenance/Alarm", request, messages.AlarmResponse)
        except PermissionDenied:
            return  # only for etcd's root; the statuses' errors name alarms too
        for alarm in reply.alarms:
            name = {messages.NOSPACE: "NOSPACE", messages.CORRUPT: "CORRUPT"}.get(alarm.alarm, str(alarm.alarm))
            remedy = (
                "compact, defragment (etcdctl defrag), then etcdctl alarm disarm; switch auto-compaction on"
                if name == "NOSPACE"
                else "see etcd's documentation on data corruption before you do anything else"
            )
            yield CheckResult(Level.BROKEN, "alarm", f"{name} at member {alarm.memberID:x}", remedy)

    def login(self, username: str | None) -> Iterator[CheckResult]:
        try:
            reply = self._call("Auth/AuthStatus", messages.AuthStatusRequest(), messages.AuthStatusResponse)
        except EtcdStatusError as error:
            if error.code is StatusCode.UNIMPLEMENTED or isinstance(error, PermissionDenied):
                return  # 3.4 doesn't know the question; some servers answer it to root only
            raise
        if not reply.enabled:
            remedy = "enable authentication (etcdctl auth enable), or keep the port where only workers reach it"
            yield CheckResult(
                Level.WARNING, "login", "authentication is off: whoever reaches etcd may take locks", remedy
            )
        elif username is None:
            yield CheckResult(Level.OK, "login", "authentication is on, we come in by certificate")
        else:
            yield CheckResult(Level.OK, "login", f"authentication is on, user {username}")

    def permissions(self, username: str | None) -> Iterator[CheckResult]:
        if username is None:
            return
        try:
            request = messages.AuthUserGetRequest(name=username)
            roles = self._call("Auth/UserGet", request, messages.AuthUserGetResponse).roles
            permissions = [
                permission
                for role in roles
                for permission in self._call(
                    "Auth/RoleGet", messages.AuthRoleGetRequest(role=role), messages.AuthRoleGetResponse
                ).perm
            ]
        except (PermissionDenied, EtcdStatusError):
            return  # switched off, or not for us to see: the probe tells what counts
        if "root" in roles:
            remedy = "; ".join(["make a user that may only lock", *role_commands(self._prefix)[:3]])
            yield CheckResult(Level.WARNING, "permissions", f"user {username} is root", remedy)
            return
        start, end = self._prefix.encode(), self._prefix.encode()[:-1] + b"0"
        on_prefix = [
            permission.permType
            for permission in permissions
            if permission.key <= start and (permission.range_end == b"\0" or permission.range_end >= end)
        ]
        listed = f"user {username}, role{'s' if len(roles) != 1 else ''} {', '.join(roles) or 'none at all'}"
        if messages.Permission.READWRITE in on_prefix:
            yield CheckResult(Level.OK, "permissions", f"{listed}: readwrite on {self._prefix}")
        elif messages.Permission.READ in on_prefix:
            self._looks_only = True
            text = f"{listed}: may look, and not lock: ls, show, watch, top and web work, workers and release don't"
            remedy = "; ".join(["for workers", *role_commands(self._prefix)[:3]])
            yield CheckResult(Level.WARNING, "permissions", text, remedy)
        else:
            role = roles[0] if roles else "ROLE"
            remedy = f"etcdctl role grant-permission {role} --prefix=true readwrite {self._prefix}"
            yield CheckResult(Level.BROKEN, "permissions", f"{listed}: no readwrite on {self._prefix}", remedy)

    def probe(self, ttl_seconds: int) -> Iterator[CheckResult]:
        """Does what a lock does: read, grant, write, delete."""
        if self._looks_only:
            yield from self._probe_of_looking()
            return
        key = f"{self._prefix}doctor/{secrets.token_hex(8)}".encode()
        doing = "read"
        try:
            range_request = messages.RangeRequest(key=key)
            self._revision = self._call("KV/Range", range_request, messages.RangeResponse).header.revision
            doing = "grant a lease"
            grant = messages.LeaseGrantRequest(ID=secrets.randbits(62) + 1, TTL=PROBE_TTL_SECONDS)
            lease = self._call("Lease/LeaseGrant", grant, messages.LeaseGrantResponse)
            doing = "write"
            self._call("KV/Put", messages.PutRequest(key=key, lease=lease.ID), messages.PutResponse)
            doing = "delete"
            self._call("KV/DeleteRange", messages.DeleteRangeRequest(key=key), messages.DeleteRangeResponse)
            self._call("Lease/LeaseRevoke", messages.LeaseRevokeRequest(ID=lease.ID), messages.LeaseRevokeResponse)
        except LockUnavailable as error:
            yield CheckResult(Level.BROKEN, "probe", f"can't {doing} under {self._prefix}: {error}")
            return
        yield CheckResult(Level.OK, "probe", f"reading, writing and leases work under {self._prefix}")
        if max(PROBE_TTL_SECONDS, ttl_seconds) < lease.TTL:
            text = f"etcd's least TTL is {lease.TTL} s, more than etcdlock_ttl ({ttl_seconds} s)"
            yield CheckResult(Level.WARNING, "TTL", text, "raise etcdlock_ttl, or lower etcd's --election-timeout")

    def _probe_of_looking(self) -> Iterator[CheckResult]:
        request = messages.RangeRequest(key=self._prefix.encode(), range_end=end_of(self._prefix.encode()), limit=1)
        self._revision = self._call("KV/Range", request, messages.RangeResponse).header.revision
        yield CheckResult(Level.OK, "probe", f"reading works under {self._prefix}; writing wasn't tried")

    def room(self, statuses: Mapping[str, Any]) -> Iterator[CheckResult]:
        largest = max(statuses.values(), key=lambda status: status.dbSize)
        quota = largest.dbSizeQuota or DEFAULT_QUOTA_BYTES
        whose = "its quota" if largest.dbSizeQuota else "etcd's default quota (this version doesn't tell its own)"
        used = largest.dbSize / quota
        text = f"{_megabytes(largest.dbSize)} of {_megabytes(quota)}, {whose}; in use {_megabytes(largest.dbSizeInUse)}"
        remedy = "switch auto-compaction on and run etcdctl defrag, member by member; or raise --quota-backend-bytes"
        if used >= 0.9:
            yield CheckResult(Level.BROKEN, "database", f"{text}: nearly full, and a full one refuses locks", remedy)
        elif used >= 0.6:
            yield CheckResult(Level.WARNING, "database", text, remedy)
        else:
            yield CheckResult(Level.OK, "database", text)

    def compaction(self) -> Iterator[CheckResult]:
        """No call tells whether it is on; but an old revision that can still be read tells that it isn't."""
        if self._revision < MANY_REVISIONS:
            yield CheckResult(Level.OK, "compaction", f"too early to tell, at revision {self._revision}")
            return
        old = messages.RangeRequest(key=self._prefix.encode(), revision=self._revision - MANY_REVISIONS + 1)
        try:
            self._call("KV/Range", old, messages.RangeResponse)
        except Compacted:
            yield CheckResult(Level.OK, "compaction", "old revisions are gone, so it is on")
            return
        text = f"the last {MANY_REVISIONS:,} revisions are all kept; at 500 bytes for each lock that fills the quota"
        remedy = "start etcd with --auto-compaction-mode=periodic --auto-compaction-retention=5m"
        yield CheckResult(Level.WARNING, "compaction", text, remedy)


def _megabytes(number: int) -> str:
    return f"{number / 1024**2:,.0f} MB"


def _members(number: int) -> str:
    return "member" if number == 1 else "members"
