"""A call with many answers, such as a watch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from time import monotonic

from celery_etcdlock.etcd.connection_pool import Pool
from celery_etcdlock.etcd.errors import DeadlinePassed, EtcdError
from celery_etcdlock.etcd.grpc_connection import GrpcConnection
from celery_etcdlock.etcd.login import MOST_LOGINS_PER_CALL, Login, check_watch
from celery_etcdlock.etcd.messages import WATCH
from celery_etcdlock.etcd.request_headers import request_headers


class EtcdStream:
    """A context manager over the answers, each as bytes. One thread uses it; any thread may ``cancel``.

    Iterating blocks until the next answer and raises ``DeadlinePassed`` when the stream's time is over. After any
    error the stream is finished: open another. At the end the connection goes back to the pool, if it can carry on.
    ``ended`` says that the server has ended the stream, without an error.
    """

    def __init__(self, pool: Pool, login: Login, path: str, request: bytes, deadline: float) -> None:
        self._pool = pool
        self._login = login
        self._path = path
        self._request = request
        self._deadline = deadline
        self._connection: GrpcConnection | None = None
        self._token = ""
        self._logins = 0
        self._answered = False
        self._cancelled = False
        self.ended = False

    def __enter__(self) -> EtcdStream:
        self._open()
        return self

    def __exit__(self, *raised: object) -> None:
        self._close()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        message = self.receive(math.inf)
        if message is None:
            raise StopIteration
        return message

    def receive(self, timeout_seconds: float) -> bytes | None:
        """The next answer, or None if none came in this time (the stream goes on) or the server has ended it."""
        until = monotonic() + timeout_seconds
        while not self.ended:
            if self._connection is None:
                raise RuntimeError("the stream is closed: use it inside its with block")
            try:
                message = self._connection.receive(min(until, self._deadline))
                if message is None and until > self._deadline:
                    raise DeadlinePassed("the stream's time is over", maybe_applied=True)
                if message is not None and not self._answered:
                    self._answered = True
                    if self._token and not self._logins:
                        check_watch(self._path, message)
            except EOFError:
                self.ended = True
            except EtcdError as error:
                self._close()
                if not self._login.again(error, self._token) or self._logins >= MOST_LOGINS_PER_CALL:
                    raise
                self._logins += 1
                self._open()
            else:
                return message
        return None

    def cancel(self) -> None:
        """From any thread: end the stream; a blocked receiver gets ConnectionLost."""
        self._cancelled = True
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def _open(self) -> None:
        pool, deadline = self._pool, self._deadline
        pool.after_fork()
        failure: EtcdError | None = None
        while self._connection is None:
            token = self._login.token(deadline)
            connection = pool.borrow(monotonic(), deadline, failure)
            try:
                seconds = deadline - monotonic()
                headers = request_headers(pool.scheme, connection.endpoint, self._path, seconds, token)
                connection.start_stream(headers, self._request, deadline, half_close=self._path != WATCH)
                self._token, self._connection = token, connection
            except EtcdError as error:
                connection.health.failed(monotonic())
                failure = error
                if error.maybe_applied or error.permanent or monotonic() >= deadline:
                    raise
            finally:
                if self._connection is None:
                    pool.discard(connection)
        if self._cancelled:
            self._connection.interrupt()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                # Not one that ``cancel`` may be about to interrupt: it looks for the connection after it has left word.
                if not self._cancelled:
                    connection.end_stream()
            finally:
                self._pool.give_back(connection)
