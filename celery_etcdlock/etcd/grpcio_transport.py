"""The transport's seam over somebody else's grpc channel, e.g. that of a python-etcd3 client.

For users who have such a client and its settings already. It isn't the default: grpcio's C core can hang in a forked
child, needs set-up of its own under gevent, and its errors say less about whether a request was sent.

The channel is made by a factory, once per process, because a channel must not cross a fork. Login is the factory's
business; when etcd rejects the token, the factory is asked for a new client.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from celery_etcdlock.etcd.errors import ConnectFailed, EtcdError, StatusCode, TokenRejected, status_error
from celery_etcdlock.etcd.login import check_watch
from celery_etcdlock.etcd.messages import KEEP_ALIVE

_NEVER_SENT = ("failed to connect to all addresses", "DNS resolution failed", "empty address list")


class GrpcTransport:
    """``call``, ``stream`` and ``close`` as ``EtcdClient`` has them.

    ``factory`` returns a ``grpc.Channel``, or an object with ``.channel`` such as ``etcd3.client(...)``, whose
    ``.metadata`` (its login token) is sent along. It is called at the first use in each process.
    """

    def __init__(self, factory: Callable[[], Any]) -> None:
        if not callable(factory):
            raise TypeError(
                "GrpcTransport needs a function that makes the channel or client, such as lambda: etcd3.client(...): "
                "a channel can't be shared with a forked process"
            )
        self._factory = factory
        self._owner: tuple[int, Any] | None = None

    def _client(self) -> Any:
        owner = self._owner
        if owner is None or owner[0] != os.getpid():
            self._owner = owner = (os.getpid(), self._factory())
        return owner[1]

    def _discard(self, client: Any) -> None:
        """Not closed: another thread may be in the middle of a call on it."""
        owner = self._owner
        if owner is not None and owner[1] is client:
            self._owner = None

    def call(self, path: str, request: bytes, timeout_seconds: float, *, repeatable: bool = False) -> bytes:
        """One unary call. grpc's channel reconnects by itself; nothing is repeated here but a rejected login."""
        import grpc

        if path == KEEP_ALIVE:
            with self.stream(path, request, timeout_seconds) as answers:
                for answer in answers:
                    return answer
            raise EtcdError("etcd ended a keepalive without an answer", maybe_applied=True)
        for attempt in (1, 2):
            client = self._client()
            method = _channel(client).unary_unary(path)
            try:
                reply: bytes = method(request, timeout=timeout_seconds, metadata=_metadata(client))
            except grpc.RpcError as error:
                typed = _typed(error)
                if isinstance(typed, TokenRejected) and attempt == 1:
                    self._discard(client)
                    continue
                raise typed from error
            return reply
        raise AssertionError("unreachable")

    def stream(self, path: str, request: bytes, timeout_seconds: float) -> GrpcStream:
        """A call with many answers: a context manager over them."""
        return GrpcStream(self, path, request, timeout_seconds)

    def close(self) -> None:
        """Close this process's channel; a later call makes another."""
        owner, self._owner = self._owner, None
        if owner is not None and owner[0] == os.getpid():
            owner[1].close()


class GrpcStream:
    """The answers of a stream, as bytes."""

    def __init__(self, transport: GrpcTransport, path: str, request: bytes, timeout_seconds: float) -> None:
        self._transport, self._path, self._request = transport, path, request
        self._deadline = time.monotonic() + timeout_seconds
        self._finished = threading.Event()
        self._answers: Any = None
        self._client: Any = None
        self._seen = 0
        self._logged_in_again = False

    def __enter__(self) -> GrpcStream:
        self._open()
        return self

    def __exit__(self, *raised: object) -> None:
        self.cancel()

    def _open(self) -> None:
        finished = self._finished = threading.Event()

        def requests() -> Iterator[bytes]:
            yield self._request
            finished.wait()  # a watch ends when the client's side does

        self._client = self._transport._client()
        method = _channel(self._client).stream_stream(self._path)
        remaining = max(0.0, self._deadline - time.monotonic())
        self._answers = method(requests(), timeout=remaining, metadata=_metadata(self._client))

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while True:
            try:
                return self._next()
            except TokenRejected:
                if self._seen or self._logged_in_again:
                    raise
                self.cancel()
                self._logged_in_again = True
                self._transport._discard(self._client)
                self._open()

    def _next(self) -> bytes:
        import grpc

        try:
            answer: bytes = next(self._answers)
        except grpc.RpcError as error:
            raise _typed(error) from error
        if not self._seen and not self._logged_in_again and getattr(self._client, "metadata", None):
            check_watch(self._path, answer)
        self._seen += 1
        return answer

    def cancel(self) -> None:
        """From any thread: end the stream."""
        self._finished.set()
        self._answers.cancel()


def _channel(client: Any) -> Any:
    return client.channel if hasattr(client, "channel") else client


def _metadata(client: Any) -> Any:
    own = getattr(client, "metadata", None)
    return [*(own or ()), ("hasleader", "true")]


def _typed(error: Any) -> EtcdError:
    code = StatusCode(error.code().value[0])
    details = error.details() or ""
    if code is StatusCode.UNAVAILABLE and details.startswith(_NEVER_SENT):
        return ConnectFailed(f"no connection to etcd: {details}")
    return status_error(code, details)
