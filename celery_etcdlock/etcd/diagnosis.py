"""Checks an etcd cluster for what locks need: reached, healthy, allowed, roomy. Each check says what to do.

Nothing is changed but for one short-lived key under the prefix, which shows that writing works.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

from celery_etcdlock.core.check_results import CheckResult, broken, ok, version_check_result, warning
from celery_etcdlock.core.roles import role_commands
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.endpoints import Endpoint
from celery_etcdlock.etcd.errors import AuthenticationFailed, Compacted, EtcdStatusError, PermissionDenied, StatusCode
from celery_etcdlock.etcd.key_layout import end_of

#: etcd's default quota, used where a server doesn't tell its own (before 3.6).
DEFAULT_QUOTA_BYTES = 2 * 1024**3
#: Revisions after which an etcd that compacts would have done so.
MANY_REVISIONS = 100_000
PROBE_TTL_SECONDS = 10

OpenClient = Callable[[tuple[str, ...]], EtcdClient]


def diagnose(open_client: OpenClient, settings: Settings) -> Iterator[CheckResult]:
    """Findings, one by one as they are made. Doesn't raise for what it can report."""
    statuses: dict[str, Any] = {}
    refused: list[str] = []
    for endpoint in settings.endpoints:
        client = open_client((endpoint,))
        shown = str(client.endpoints[0])
        try:
            status = statuses[endpoint] = messages.ask(client, messages.StatusRequest(), settings.timeout)
            yield from _member(client.endpoints[0], status)
        except AuthenticationFailed as error:
            refused.append(shown)
            remedy = "check etcdlock_username and etcdlock_password (or the client's certificate)"
            yield broken(f"endpoint {shown}", f"it answered, but refused the login: {error}", remedy)
        except LockUnavailable as error:
            remedy = "" if len(str(error)) > 120 else "is it running, and is the address that of its client port?"
            yield broken(f"endpoint {shown}", str(error), remedy)
        finally:
            client.close()
    if refused and not statuses:
        text = f"{refused[0]} answered, but refused the login, so nothing more can be checked"
        remedy = "; ".join(
            ["as etcd's root, a user that may lock and one that may look", *role_commands(settings.prefix)]
        )
        yield broken("login", text, remedy)
        return
    if not statuses:
        remedy = "check etcdlock_endpoints, the network, and the certificates"
        yield broken("etcd", "no endpoint answered, so nothing more can be checked", remedy)
        return
    clusters = {status.header.cluster_id for status in statuses.values()}
    if len(clusters) > 1:
        text = f"the endpoints belong to {len(clusters)} different clusters: each would give the same lock away"
        yield broken("endpoints", text, "name the members of one cluster in etcdlock_endpoints")
    client = open_client(tuple(statuses))
    check = _Cluster(client, settings)
    try:
        for check_results in (
            check.members(),
            check.alarms(),
            check.login(),
            check.permissions(),
            check.probe(),
            check.room(max(statuses.values(), key=lambda status: status.dbSize)),
            check.compaction(),
        ):
            try:
                yield from check_results
            except LockUnavailable as error:
                yield broken("etcd", str(error))
    finally:
        client.close()


def _member(endpoint: Endpoint, status: Any) -> Iterator[CheckResult]:
    shown = str(endpoint)
    subject = f"endpoint {shown}"
    yield ok(subject, f"answers, {'TLS' if endpoint.tls else 'no TLS'}")
    if not endpoint.tls and not shown.startswith(("127.", "localhost", "[::1]")):
        remedy = "use https:// endpoints, with etcdlock_ca_cert"
        yield warning(subject, "no TLS: passwords and locks travel in the clear", remedy)
    yield version_check_result(shown, status.version)
    if not status.leader:
        yield broken(subject, "this member sees no leader", "bring back a majority of the members")
    if status.isLearner:
        remedy = "leave it out of etcdlock_endpoints until it is promoted"
        yield warning(subject, "is a learner, which serves no locks", remedy)
    for error_text in status.errors:
        yield broken(subject, f"reports: {error_text}")


class _Cluster:
    """Checks that any member can answer."""

    def __init__(self, client: EtcdClient, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._prefix = settings.prefix
        self._revision = 0
        self._looks_only = False

    def _ask(self, request: Any) -> Any:
        return messages.ask(self._client, request, self._settings.timeout)

    def members(self) -> Iterator[CheckResult]:
        named = len(self._settings.endpoints)
        reply = self._ask(messages.MemberListRequest())
        voters = [member for member in reply.members if not member.isLearner]
        text = f"{len(voters)} {'member' if len(voters) == 1 else 'members'}, {named} named in etcdlock_endpoints"
        if len(voters) == 1:
            yield warning("cluster", f"{text}: when this one is down, no lock can be had", "run three")
        elif named < len(voters):
            yield warning("cluster", text, "name all of them, so that any may fail")
        elif len(voters) % 2 == 0:
            yield warning("cluster", f"{text}: an even number survives no more failures", "add one")
        else:
            yield ok("cluster", text)

    def alarms(self) -> Iterator[CheckResult]:
        try:
            reply = self._ask(messages.AlarmRequest(action=messages.AlarmRequest.GET))
        except PermissionDenied:
            return  # only for etcd's root; the statuses' errors name alarms too
        for alarm in reply.alarms:
            name = {messages.NOSPACE: "NOSPACE", messages.CORRUPT: "CORRUPT"}.get(alarm.alarm, str(alarm.alarm))
            remedy = "see etcd's documentation on data corruption before you do anything else"
            if name == "NOSPACE":
                remedy = "compact, defragment (etcdctl defrag), then etcdctl alarm disarm; switch auto-compaction on"
            yield broken("alarm", f"{name} at member {alarm.memberID:x}", remedy)

    def login(self) -> Iterator[CheckResult]:
        try:
            reply = self._ask(messages.AuthStatusRequest())
        except EtcdStatusError as error:
            if error.code is StatusCode.UNIMPLEMENTED or isinstance(error, PermissionDenied):
                return  # 3.4 doesn't know the question; some servers answer it to root only
            raise
        if not reply.enabled:
            remedy = "enable authentication (etcdctl auth enable), or keep the port where only workers reach it"
            yield warning("login", "authentication is off: whoever reaches etcd may take locks", remedy)
        else:
            username = self._settings.username
            who = "we come in by certificate" if username is None else f"user {username}"
            yield ok("login", f"authentication is on, {who}")

    def permissions(self) -> Iterator[CheckResult]:
        username = self._settings.username
        if username is None:
            return
        try:
            roles = self._ask(messages.AuthUserGetRequest(name=username)).roles
            permissions = [each for role in roles for each in self._ask(messages.AuthRoleGetRequest(role=role)).perm]
        except EtcdStatusError:
            return  # switched off, or not for us to see: the probe tells what counts
        if "root" in roles:
            remedy = "; ".join(["make a user that may only lock", *role_commands(self._prefix)[:3]])
            yield warning("permissions", f"user {username} is root", remedy)
            return
        start = self._prefix.encode()
        on_prefix = [
            permission.permType
            for permission in permissions
            if permission.key <= start and (permission.range_end == b"\0" or permission.range_end >= end_of(start))
        ]
        listed = f"user {username}, role{'s' if len(roles) != 1 else ''} {', '.join(roles) or 'none at all'}"
        if messages.Permission.READWRITE in on_prefix:
            yield ok("permissions", f"{listed}: readwrite on {self._prefix}")
        elif messages.Permission.READ in on_prefix:
            self._looks_only = True
            text = f"{listed}: may look, and not lock: ls, show, watch, top and web work, workers and release don't"
            remedy = "; ".join(["for workers", *role_commands(self._prefix)[:3]])
            yield warning("permissions", text, remedy)
        else:
            role = roles[0] if roles else "ROLE"
            remedy = f"etcdctl role grant-permission {role} --prefix=true readwrite {self._prefix}"
            yield broken("permissions", f"{listed}: no readwrite on {self._prefix}", remedy)

    def probe(self) -> Iterator[CheckResult]:
        """Does what a lock does: read, grant, write, delete."""
        if self._looks_only:
            start = self._prefix.encode()
            found = self._ask(messages.RangeRequest(key=start, range_end=end_of(start), limit=1))
            self._revision = found.header.revision
            yield ok("probe", f"reading works under {self._prefix}; writing wasn't tried")
            return
        key = f"{self._prefix}doctor/{secrets.token_hex(8)}".encode()
        doing = "read"
        try:
            self._revision = self._ask(messages.RangeRequest(key=key)).header.revision
            doing = "grant a lease"
            lease = self._ask(messages.LeaseGrantRequest(ID=secrets.randbits(62) + 1, TTL=PROBE_TTL_SECONDS))
            doing = "write"
            self._ask(messages.PutRequest(key=key, lease=lease.ID))
            doing = "delete"
            self._ask(messages.DeleteRangeRequest(key=key))
            self._ask(messages.LeaseRevokeRequest(ID=lease.ID))
        except LockUnavailable as error:
            yield broken("probe", f"can't {doing} under {self._prefix}: {error}")
            return
        yield ok("probe", f"reading, writing and leases work under {self._prefix}")
        if max(PROBE_TTL_SECONDS, self._settings.ttl) < lease.TTL:
            text = f"etcd's least TTL is {lease.TTL} s, more than etcdlock_ttl ({self._settings.ttl} s)"
            yield warning("TTL", text, "raise etcdlock_ttl, or lower etcd's --election-timeout")

    def room(self, largest: Any) -> Iterator[CheckResult]:
        """``largest`` is the status of the member with most data."""
        quota = largest.dbSizeQuota or DEFAULT_QUOTA_BYTES
        whose = "its quota" if largest.dbSizeQuota else "etcd's default quota (this version doesn't tell its own)"
        used = largest.dbSize / quota
        text = f"{_megabytes(largest.dbSize)} of {_megabytes(quota)}, {whose}; in use {_megabytes(largest.dbSizeInUse)}"
        remedy = "switch auto-compaction on and run etcdctl defrag, member by member; or raise --quota-backend-bytes"
        if used >= 0.9:
            yield broken("database", f"{text}: nearly full, and a full one refuses locks", remedy)
        elif used >= 0.6:
            yield warning("database", text, remedy)
        else:
            yield ok("database", text)

    def compaction(self) -> Iterator[CheckResult]:
        """No call tells whether it is on; but an old revision that can still be read tells that it isn't."""
        if self._revision < MANY_REVISIONS:
            yield ok("compaction", f"too early to tell, at revision {self._revision}")
            return
        old = messages.RangeRequest(key=self._prefix.encode(), revision=self._revision - MANY_REVISIONS + 1)
        try:
            self._ask(old)
        except Compacted:
            yield ok("compaction", "old revisions are gone, so it is on")
            return
        text = f"the last {MANY_REVISIONS:,} revisions are all kept; at 500 bytes for each lock that fills the quota"
        remedy = "start etcd with --auto-compaction-mode=periodic --auto-compaction-retention=5m"
        yield warning("compaction", text, remedy)


def _megabytes(number: int) -> str:
    return f"{number / 1024**2:,.0f} MB"
