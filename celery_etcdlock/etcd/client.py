"""Calls to an etcd cluster: pooled connections, failover, logging in again, forks.

Each call borrows a connection of its own, the one used last, or makes one; none waits for another. A connection goes
back to the pool only when a call on it has ended cleanly. There is no mutex: the pool is a deque, the rest are plain
attributes whose races cost at most a needless attempt. So greenlets, threads and a forked child can't find one held.

What is repeated, always within the caller's deadline, at the next endpoint that is well:
  * anything, if the request certainly didn't reach etcd (no connection, GOAWAY, REFUSED_STREAM, no leader);
  * anything, after logging in again, if etcd rejected the token: it checks that before it acts;
  * only what the caller marked ``repeatable``, if etcd may have applied it already.

A process that was forked finds a client that belongs to its parent. It closes its copies of the sockets without a
word to the server, and starts with fresh connections; the login token is a fact, not a resource, and is kept.
"""

from __future__ import annotations

import math
import os
import random
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

from celery_etcdlock.errors import InvalidSetting

from . import messages
from .connecting import Connector
from .endpoints import EndpointHealth, parse_endpoints
from .errors import (
    AuthenticationFailed,
    DeadlinePassed,
    EtcdError,
    EtcdStatusError,
    StatusCode,
    TokenRejected,
)
from .http2 import Headers, Http2Connection
from .sockets import Sockets, patched
from .stream import EtcdStream
from .tls import TlsFiles

__all__ = ["EtcdClient"]

AUTHENTICATE = "/etcdserverpb.Auth/Authenticate"
MOST_IDLE_CONNECTIONS = 32
MOST_HEADERS_KEPT = 64
SERVER_WAITS_LONGER_SECONDS = 1.0
MOST_LOGINS_PER_CALL = 3
NO_LOGIN_NEEDED = ""

_clients: weakref.WeakSet[EtcdClient] = weakref.WeakSet()


class EtcdClient:
    """A client of one etcd cluster, for any number of threads.

    ``sockets`` is a flavour from ``sockets.py``, by default the process's. Raises ``InvalidSetting`` for settings
    that contradict each other; the server isn't contacted before the first call.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str] = "127.0.0.1:2379",
        *,
        username: str | None = None,
        password: str | None = None,
        ca_cert: str | None = None,
        client_cert: str | None = None,
        client_key: str | None = None,
        sockets: Sockets | None = None,
        idle_seconds: float = 60.0,
    ) -> None:
        self._tls_files = TlsFiles(ca_cert, client_cert, client_key)
        if client_key and not client_cert:
            raise InvalidSetting("etcdlock_client_key is set without etcdlock_client_cert: set both")
        if bool(username) != bool(password):
            missing = "etcdlock_password" if username else "etcdlock_username"
            raise InvalidSetting(f"{missing} is missing: set both etcdlock_username and etcdlock_password")
        self.endpoints = parse_endpoints(endpoints, tls=bool(self._tls_files))
        self._username = username
        self._password = password
        self._sockets = sockets or patched()
        self._idle_seconds = idle_seconds
        self._healths = [EndpointHealth(endpoint) for endpoint in self.endpoints]
        random.shuffle(self._healths)
        self._connector = Connector(self._sockets, self._healths, self._tls_files)
        self._token: str | None = None if username else NO_LOGIN_NEEDED
        self._headers: dict[tuple[str, str, bytes, str], Headers] = {}
        self._pid = os.getpid()
        self._idle: deque[Http2Connection] = deque()
        _clients.add(self)

    def __repr__(self) -> str:
        return f"<EtcdClient of {', '.join(map(str, self.endpoints))}>"

    def __reduce__(self) -> Any:
        raise TypeError("an EtcdClient can't be pickled: make one in each process")

    # ---- public

    def call(self, path: str, request: bytes, timeout_seconds: float, *, repeatable: bool = False) -> bytes:
        """One unary call, e.g. of ``/etcdserverpb.KV/Txn``; the serialized reply.

        ``repeatable`` says that applying the request twice does no harm (reads). Raises ``EtcdError``.
        """
        self._after_fork()
        deadline = self._sockets.monotonic() + timeout_seconds
        return self._call(path, request, deadline, repeatable=repeatable, login=path != AUTHENTICATE)

    def stream(self, path: str, request: bytes, timeout_seconds: float) -> EtcdStream:
        """A call with many answers, e.g. of ``/etcdserverpb.Watch/Watch``: a context manager over them.

        ``timeout_seconds`` bounds the whole stream. It has a connection of its own, closed at the end.
        """
        self._after_fork()
        return EtcdStream(self, path, request, self._sockets.monotonic() + timeout_seconds)

    def forget_token(self) -> None:
        """Log in again at the next call (if there is a user name)."""
        if self._username:
            self._token = None

    def close(self) -> None:
        """Close the idle connections. Calls under way end by themselves; a later call connects anew."""
        self._after_fork()
        while self._idle:
            self._discard(self._idle.pop())

    # ---- a call

    def _call(self, path: str, request: bytes, deadline: float, *, repeatable: bool, login: bool) -> bytes:
        logins = 0
        untried = len(self._healths)
        in_doubt = False
        while True:
            token = self._current_token(deadline) if login else NO_LOGIN_NEEDED
            try:
                connection, health = self._borrow(deadline)
            except EtcdError as error:
                error.maybe_applied = error.maybe_applied or in_doubt
                raise
            now = self._sockets.monotonic()
            share = now + (deadline - now) / max(1, untried) if repeatable else deadline
            untried -= 1
            try:
                try:
                    headers = self._request_headers(connection.endpoint, path, deadline - now, token)
                    reply = connection.call(headers, request, share)
                finally:
                    self._give_back(connection)
            except EtcdError as error:
                if self._login_again(error, token) and logins < MOST_LOGINS_PER_CALL:
                    logins += 1
                    continue
                in_doubt = in_doubt or error.maybe_applied
                if _blames_endpoint(error):
                    health.failed(self._sockets.monotonic())
                    harmless = repeatable or not error.maybe_applied
                    if harmless and not error.permanent and self._sockets.monotonic() < deadline:
                        continue
                error.maybe_applied = in_doubt
                raise
            health.succeeded()
            return reply

    def _request_headers(self, authority: str, path: str, timeout_seconds: float, token: str) -> Headers:
        # Later than ours: a server that is first ends a watch with a reset (etcd 3.6), as if the connection had failed.
        # Rounded up, so that the headers of most calls are the same.
        tenths = math.ceil((timeout_seconds + SERVER_WAITS_LONGER_SECONDS) * 10)
        unit = b"%dm" % (tenths * 100) if tenths < 10**6 else b"%dS" % min(10**8 - 1, tenths // 10)
        wanted = (authority, path, unit, token)
        headers = self._headers.get(wanted)
        if headers is None:
            headers = (
                (b":method", b"POST"),
                (b":scheme", b"https" if self.endpoints[0].tls else b"http"),
                (b":path", path.encode()),
                (b":authority", authority.encode()),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"user-agent", b"celery-etcdlock"),
                (b"hasleader", b"true"),  # fail at once at a member that is cut off from its leader
                (b"grpc-timeout", unit),
                *(((b"token", token.encode()),) if token else ()),
            )
            if len(self._headers) >= MOST_HEADERS_KEPT:
                self._headers.clear()
            self._headers[wanted] = headers
        return headers

    # ---- logging in

    def _current_token(self, deadline: float) -> str:
        token = self._token
        if token is None:
            request = messages.AuthenticateRequest(name=self._username, password=self._password)
            try:
                reply = self._call(AUTHENTICATE, request.SerializeToString(), deadline, repeatable=True, login=False)
                token = str(messages.AuthenticateResponse.FromString(reply).token)
            except EtcdStatusError as error:
                error.maybe_applied = False
                if "authentication is not enabled" not in error.details:
                    raise
                token = NO_LOGIN_NEEDED
            except EtcdError as error:
                error.maybe_applied = False
                raise
            self._token = token
        return token

    def _login_again(self, error: EtcdError, token: str) -> bool:
        """Whether another login may help: the token was rejected, or auth was switched on since we asked."""
        if not self._username:
            return False
        rejected = isinstance(error, TokenRejected) or (
            isinstance(error, AuthenticationFailed) and "user name is empty" in error.details
        )
        if rejected and self._token == token:
            self._token = None
        return rejected

    # ---- connections

    def _borrow(self, deadline: float) -> tuple[Http2Connection, EndpointHealth]:
        now = self._sockets.monotonic()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._connector.connect(deadline)
            health = self._health_of(connection)
            fresh = now - connection.idle_since < self._idle_seconds and health.rests_until <= now
            if fresh and connection.still_alive():
                return connection, health
            self._discard(connection)

    def _give_back(self, connection: Http2Connection) -> None:
        if not connection.reusable or self._pid != os.getpid():
            self._discard(connection)
            return
        now = connection.idle_since = self._sockets.monotonic()
        self._idle.append(connection)
        try:
            while len(self._idle) > MOST_IDLE_CONNECTIONS or now - self._idle[0].idle_since > self._idle_seconds:
                self._discard(self._idle.popleft())
        except IndexError:
            pass  # another thread was quicker

    def _discard(self, connection: Http2Connection) -> None:
        self._connector.open.discard(connection)
        connection.close()

    def _health_of(self, connection: Http2Connection) -> EndpointHealth:
        return next(health for health in self._healths if str(health.endpoint) == connection.endpoint)

    # ---- forks

    def _after_fork(self) -> None:
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._idle = deque()
        self._connector.forget_all()


def _blames_endpoint(error: EtcdError) -> bool:
    """Whether another endpoint might do better."""
    if isinstance(error, EtcdStatusError) and not isinstance(error, DeadlinePassed):
        return error.code in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)
    return True


def _forget_inherited() -> None:
    """In a forked child, at once: else its copies keep the parent's connections open after the parent has died."""
    for client in list(_clients):
        client._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)
