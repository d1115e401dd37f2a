"""Calls to an etcd cluster: failover and logging in again, over pooled connections.

What is repeated, always within the caller's deadline, at the next endpoint that is well:
  * anything, if the request certainly didn't reach etcd (no connection, GOAWAY, REFUSED_STREAM, no leader);
  * anything, after logging in again, if etcd rejected the token: it checks that before it acts;
  * only what the caller marked ``repeatable``, if etcd may have applied it already.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

from celery_etcdlock.etcd.connection_pool import Pool
from celery_etcdlock.etcd.endpoints import parse_endpoints
from celery_etcdlock.etcd.errors import DeadlinePassed, EtcdError, EtcdStatusError, StatusCode
from celery_etcdlock.etcd.login import MOST_LOGINS_PER_CALL, NO_LOGIN_NEEDED, Login
from celery_etcdlock.etcd.messages import KEEP_ALIVE
from celery_etcdlock.etcd.request_headers import request_headers
from celery_etcdlock.etcd.sockets import Sockets, patched
from celery_etcdlock.etcd.streaming_call import EtcdStream
from celery_etcdlock.etcd.tls import TlsFiles


class EtcdClient:
    """A client of one etcd cluster, for any number of threads.

    ``sockets`` is a flavour from ``sockets.py``, by default the process's. Raises ``InvalidSetting`` for endpoints that
    can't be parsed; the server isn't contacted before the first call.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str] = "127.0.0.1:2379",
        *,
        username: str | None = None,
        password: str | None = None,
        ca_cert: str | None = None,
        client_cert: str | None = None,
        client_key: str | None = None,
        sockets: Sockets | None = None,
    ) -> None:
        tls_files = TlsFiles(ca_cert, client_cert, client_key)
        self.endpoints = parse_endpoints(endpoints, tls=bool(tls_files))
        self._pool = Pool(self.endpoints, sockets or patched(), tls_files)
        self._login = Login(username, password, self._call)

    def __repr__(self) -> str:
        return f"<EtcdClient of {', '.join(map(str, self.endpoints))}>"

    def __reduce__(self) -> Any:
        raise TypeError("an EtcdClient can't be pickled: make one in each process")

    def call(self, path: str, request: bytes, timeout_seconds: float, *, repeatable: bool = False) -> bytes:
        """One unary call, e.g. of ``/etcdserverpb.KV/Txn``; the serialized reply.

        ``repeatable`` says that applying the request twice does no harm (reads). Raises ``EtcdError``.
        """
        self._pool.after_fork()
        return self._call(path, request, monotonic() + timeout_seconds, repeatable=repeatable, login=True)

    def stream(self, path: str, request: bytes, timeout_seconds: float) -> EtcdStream:
        """A call with many answers, e.g. of ``/etcdserverpb.Watch/Watch``: a context manager over them.

        ``timeout_seconds`` bounds the whole stream. It has a connection of its own while it lasts.
        """
        return EtcdStream(self._pool, self._login, path, request, monotonic() + timeout_seconds)

    def close(self) -> None:
        """Close the idle connections. Calls under way end by themselves; a later call connects anew."""
        self._pool.after_fork()
        self._pool.close()

    def _call(
        self, path: str, request: bytes, deadline: float, *, repeatable: bool = True, login: bool = False
    ) -> bytes:
        pool = self._pool
        logins = 0
        untried = len(pool.healths)
        in_doubt = False
        failure: EtcdError | None = None
        while True:
            token = self._login.token(deadline) if login else NO_LOGIN_NEEDED
            try:
                connection = pool.borrow(monotonic(), deadline, failure)
            except EtcdError as error:
                error.maybe_applied = error.maybe_applied or in_doubt
                raise
            health = connection.health
            now = monotonic()
            share = now + (deadline - now) / max(1, untried) if repeatable else deadline
            untried -= 1
            try:
                try:
                    headers = request_headers(pool.scheme, connection.endpoint, path, deadline - now, token)
                    reply = connection.call(headers, request, share, leave=path == KEEP_ALIVE)
                finally:
                    pool.give_back(connection)
            except EtcdError as error:
                if self._login.again(error, token) and logins < MOST_LOGINS_PER_CALL:
                    logins += 1
                    continue
                in_doubt = in_doubt or error.maybe_applied
                if _blames_endpoint(error):
                    health.failed(monotonic())
                    harmless = repeatable or not error.maybe_applied
                    if harmless and not error.permanent and monotonic() < deadline:
                        failure = error
                        continue
                error.maybe_applied = in_doubt
                raise
            if health.failures:
                health.succeeded()
            return reply


def _blames_endpoint(error: EtcdError) -> bool:
    """Whether another endpoint might do better."""
    if isinstance(error, EtcdStatusError) and not isinstance(error, DeadlinePassed):
        return error.code in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)
    return True
