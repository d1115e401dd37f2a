"""What can go wrong between us and etcd, typed by what the caller may conclude.

All of them are ``LockUnavailable``. ``maybe_applied`` is the important bit: false means that etcd certainly
did not and will not execute the request; true means that nobody can tell. ``permanent`` means that somebody
has to mend the configuration first. Nothing here ever carries a password or a token.
"""

from __future__ import annotations

from enum import IntEnum

from celery_etcdlock.errors import LockUnavailable

#: Those of gRPC.
StatusCode = IntEnum(
    "StatusCode",
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
    "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
    "UNAUTHENTICATED",
    start=0,
)

# Refused before or while etcd looked at the request; every other code leaves doubt.
NOT_APPLIED = frozenset(
    {
        StatusCode.INVALID_ARGUMENT,
        StatusCode.NOT_FOUND,
        StatusCode.ALREADY_EXISTS,
        StatusCode.PERMISSION_DENIED,
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.OUT_OF_RANGE,
        StatusCode.UNIMPLEMENTED,
        StatusCode.UNAUTHENTICATED,
    }
)
# UNAVAILABLE, but said by etcd's interceptors before the request reaches a handler.
NOT_APPLIED_MESSAGES = ("etcdserver: no leader", "etcdserver: not capable", "rpc not supported for learner")


class EtcdError(LockUnavailable):
    """etcd couldn't be asked or gave no usable answer. ``endpoint``, where it is one, begins the message."""

    def __init__(
        self, message: str, *, endpoint: str = "", maybe_applied: bool = False, permanent: bool = False
    ) -> None:
        text = f"{endpoint}: {message}" if endpoint else message
        super().__init__(text, maybe_applied=maybe_applied, permanent=permanent)
        self.endpoint = endpoint


class ConnectFailed(EtcdError):
    """No connection could be made: refused, unreachable, unknown host. Nothing was sent."""


class TlsFailed(ConnectFailed):
    """The TLS handshake failed, or a certificate file can't be used. Nothing was sent."""


class NotEtcd(ConnectFailed):
    """Something answers at the endpoint, but not etcd's gRPC API. Nothing was applied."""


class OtherCluster(EtcdError):
    """A member of another cluster answered than the one that this process has worked with."""


class RevisionsWentBack(EtcdError):
    """etcd has forgotten revisions that this process has seen."""


class NotProcessed(EtcdError):
    """The server said that it did not look at the request (GOAWAY, REFUSED_STREAM): safe to repeat."""


class ConnectionLost(EtcdError):
    """The connection broke during a call; ``maybe_applied`` unless the request wasn't sent whole."""


class DeadlinePassed(EtcdError):
    """No answer within the time given; ``maybe_applied`` unless the request wasn't sent whole."""


class EtcdStatusError(EtcdError):
    """etcd answered with a gRPC status other than OK: ``code`` and ``details``, its own words."""

    def __init__(
        self,
        code: StatusCode,
        details: str,
        *,
        endpoint: str = "",
        remedy: str = "",
        maybe_applied: bool = False,
        permanent: bool = False,
    ) -> None:
        at = f" at {endpoint}" if endpoint else ""
        text = f"etcd{at} answered {code.name}: {details or 'no message'}"
        self.text = f"{text}; {remedy}" if remedy else text
        super().__init__(self.text, maybe_applied=maybe_applied, permanent=permanent)
        self.endpoint = endpoint
        self.args = (code, details)
        self.code = code
        self.details = details

    def __str__(self) -> str:
        return self.text


class ServerDeadlinePassed(EtcdStatusError, DeadlinePassed):
    """The server's copy of our deadline ran out first: the two clocks race, so both sides' words mean the same."""


class AuthenticationFailed(EtcdStatusError):
    """Wrong user name or password, or a login is required and none is configured."""


class PermissionDenied(EtcdStatusError):
    """The user (or certificate's common name) has no role that allows this on these keys."""


class TokenRejected(EtcdStatusError):
    """The auth token expired or the auth store changed; the client logs in again by itself."""


class LeaseNotFound(EtcdStatusError):
    """The lease expired or was revoked."""


class LeaseExists(EtcdStatusError):
    """A lease of this id exists already."""


class NoSpace(EtcdStatusError):
    """etcd's database quota is used up: it refuses puts and grants until an operator compacts and defragments."""


class Compacted(EtcdStatusError):
    """The revision asked for has been compacted: read again and go on from there."""


class TooManyOperations(EtcdStatusError):
    """The transaction has more operations than etcd's ``--max-txn-ops``."""


_LOGIN = "check etcdlock_username and etcdlock_password"
_ROLE = "grant a role with readwrite on etcdlock_prefix to the user (or to the client certificate's common name)"
_SPACE = "compact and defragment etcd, or raise --quota-backend-bytes, then disarm the alarm (etcdctl alarm disarm)"
_NEEDS_LOGIN = "this etcd wants a login: set etcdlock_username and etcdlock_password, or a client certificate"

# (part of etcd's message, class, remedy, permanent)
_BY_DETAILS: tuple[tuple[str, type[EtcdStatusError], str, bool], ...] = (
    ("requested lease not found", LeaseNotFound, "", False),
    ("lease already exists", LeaseExists, "", False),
    ("database space exceeded", NoSpace, _SPACE, False),
    ("required revision has been compacted", Compacted, "", False),
    ("too many operations in txn request", TooManyOperations, "", False),
    ("invalid user ID or password", AuthenticationFailed, _LOGIN, True),
    ("user name is empty", AuthenticationFailed, _NEEDS_LOGIN, True),
    ("invalid auth token", TokenRejected, "", False),
    ("revision of auth store is old", TokenRejected, "", False),
    ("permission denied", PermissionDenied, _ROLE, True),
)


def status_error(code: int, details: str, endpoint: str = "") -> EtcdStatusError:
    """The typed error for a gRPC status."""
    known = StatusCode(code) if 0 <= code < len(StatusCode) else StatusCode.UNKNOWN
    for part, error_class, remedy, permanent in _BY_DETAILS:
        if part in details:
            # etcd refuses these before it changes anything, whatever code they travel under
            return error_class(known, details, endpoint=endpoint, remedy=remedy, permanent=permanent)
    if known is StatusCode.DEADLINE_EXCEEDED or "context deadline exceeded" in details:
        # etcd 3.4 and 3.5 end a watch with UNKNOWN at its deadline
        return ServerDeadlinePassed(known, details, endpoint=endpoint, maybe_applied=True)
    if known is StatusCode.PERMISSION_DENIED:
        return PermissionDenied(known, details, endpoint=endpoint, remedy=_ROLE, permanent=True)
    maybe_applied = known not in NOT_APPLIED and not details.endswith(NOT_APPLIED_MESSAGES)
    return EtcdStatusError(known, details, endpoint=endpoint, maybe_applied=maybe_applied)
