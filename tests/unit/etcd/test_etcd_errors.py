from __future__ import annotations

import pickle

import pytest

from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.etcd import errors
from celery_etcdlock.etcd.errors import EtcdError, EtcdStatusError, StatusCode, status_error

CASES = [
    errors.ConnectFailed("refused", endpoint="a:1"),
    errors.TlsFailed("bad", endpoint="a:1", permanent=True),
    errors.NotEtcd("bad", permanent=True),
    errors.NotProcessed("bad"),
    errors.ConnectionLost("bad", maybe_applied=True),
    errors.DeadlinePassed("bad", endpoint="a:1", maybe_applied=True),
    *(status_error(code, "etcdserver: odd", "a:1") for code in range(1, 20)),
    status_error(2, "context deadline exceeded", "a:1"),
    status_error(5, "etcdserver: requested lease not found", "a:1"),
    status_error(3, "etcdserver: authentication failed, invalid user ID or password", "a:1"),
]


@pytest.mark.parametrize("error", CASES, ids=lambda error: f"{type(error).__name__}-{error}")
def test_pickle(error: EtcdError) -> None:
    error.maybe_applied = not error.maybe_applied  # survives even when it was changed later
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.__dict__ == error.__dict__
    assert isinstance(copy, LockUnavailable)


@pytest.mark.parametrize(
    ("code", "details", "kind", "permanent"),
    [
        (5, "etcdserver: requested lease not found", errors.LeaseNotFound, False),
        (9, "etcdserver: lease already exists", errors.LeaseExists, False),
        (8, "etcdserver: mvcc: database space exceeded", errors.NoSpace, False),
        (11, "etcdserver: mvcc: required revision has been compacted", errors.Compacted, False),
        (3, "etcdserver: too many operations in txn request", errors.TooManyOperations, False),
        (3, "etcdserver: authentication failed, invalid user ID or password", errors.AuthenticationFailed, True),
        (3, "etcdserver: user name is empty", errors.AuthenticationFailed, True),
        (16, "etcdserver: invalid auth token", errors.TokenRejected, False),
        (3, "etcdserver: revision of auth store is old", errors.TokenRejected, False),
        (7, "etcdserver: permission denied", errors.PermissionDenied, True),
        (7, "", errors.PermissionDenied, True),
    ],
)
def test_types(code: int, details: str, kind: type[EtcdStatusError], permanent: bool) -> None:
    error = status_error(code, details, "a:1")
    assert type(error) is kind
    assert (error.maybe_applied, error.permanent) == (False, permanent)
    assert "a:1" in str(error)
    assert error.code == StatusCode(code)


@pytest.mark.parametrize(
    "details", ["etcdserver: no leader", "etcdserver: not capable", "etcdserver: rpc not supported for learner"]
)
def test_said_before_the_request_was_looked_at(details: str) -> None:
    assert not status_error(14, details).maybe_applied
    assert status_error(14, "etcdserver: leader changed").maybe_applied


@pytest.mark.parametrize(("code", "details"), [(4, "Deadline Exceeded"), (2, "context deadline exceeded")])
def test_the_servers_deadline_is_ours(code: int, details: str) -> None:
    error = status_error(code, details)
    assert isinstance(error, errors.DeadlinePassed)
    assert error.maybe_applied


def test_remedies() -> None:
    assert "etcdlock_password" in str(status_error(3, "authentication failed, invalid user ID or password"))
    assert "etcdlock_prefix" in str(status_error(7, "etcdserver: permission denied"))
    assert "alarm" in str(status_error(8, "etcdserver: mvcc: database space exceeded"))
