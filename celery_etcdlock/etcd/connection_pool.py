"""The connections of a client: new ones to whichever endpoint is well, and those that wait for the next call.

Each call borrows a connection of its own, the one used last, or makes one; none waits for another. A connection goes
back only when a call on it has ended cleanly. There is no mutex: the pool is a deque, the rest are plain attributes
whose races cost at most a needless attempt. So greenlets, threads and a forked child can't find one held.

A process that was forked finds a pool that belongs to its parent. It closes its copies of the sockets without a word
to the server, and starts with fresh connections.
"""

from __future__ import annotations

import os
import random
import weakref
from collections import deque
from collections.abc import Iterable
from time import monotonic

from celery_etcdlock.etcd.endpoints import FIRST_REST_SECONDS, Endpoint, EndpointHealth, next_endpoint
from celery_etcdlock.etcd.errors import ConnectFailed, DeadlinePassed, EtcdError, NotEtcd, TlsFailed
from celery_etcdlock.etcd.grpc_connection import GrpcConnection
from celery_etcdlock.etcd.sockets import Channel, Sockets, connect_tcp
from celery_etcdlock.etcd.tls import TlsChannel, TlsFiles, client_context

MOST_IDLE_CONNECTIONS = 32
IDLE_SECONDS = 60.0

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool:
    """See the module. ``open`` are the connections that live, for a fork to forget."""

    def __init__(self, endpoints: Iterable[Endpoint], sockets: Sockets, tls_files: TlsFiles) -> None:
        self.healths = [EndpointHealth(endpoint) for endpoint in endpoints]
        random.shuffle(self.healths)
        self.open: weakref.WeakSet[GrpcConnection] = weakref.WeakSet()
        self.idle: deque[GrpcConnection] = deque()
        self.scheme = "https" if self.healths[0].endpoint.tls else "http"
        self._sockets = sockets
        self._tls_files = tls_files
        self._pid = os.getpid()
        _pools.add(self)

    def borrow(self, now: float, deadline: float, failure: EtcdError | None = None) -> GrpcConnection:
        """A connection that nobody else uses, made anew if there is none (see ``connect``); raises EtcdError."""
        while True:
            try:
                connection = self.idle.pop()
            except IndexError:
                return self.connect(deadline, failure)
            fresh = now - connection.idle_since < IDLE_SECONDS and connection.health.rests_until <= now
            if fresh and connection.still_alive():
                return connection
            self.discard(connection)

    def give_back(self, connection: GrpcConnection) -> None:
        """After a call, however it ended."""
        if not connection.reusable or self._pid != os.getpid():
            self.discard(connection)
            return
        now = connection.idle_since = monotonic()
        idle = self.idle
        idle.append(connection)
        try:
            while len(idle) > MOST_IDLE_CONNECTIONS or now - idle[0].idle_since > IDLE_SECONDS:
                self.discard(idle.popleft())
        except IndexError:
            pass  # another thread was quicker

    def discard(self, connection: GrpcConnection) -> None:
        self.open.discard(connection)
        connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        while self.idle:
            self.discard(self.idle.pop())

    def after_fork(self) -> None:
        """Called before each use: forget the parent's connections, if this process is new."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self.idle = deque()
        inherited = list(self.open)
        self.open = weakref.WeakSet()
        for connection in inherited:
            connection.forget()

    # ---- new connections

    def connect(self, deadline: float, failure: EtcdError | None = None) -> GrpcConnection:
        """A new connection to any endpoint, trying until the deadline; the error says what each one said last.

        After a ``failure``, of a try before or here, it waits while all rest, but at most for half of the time left.
        """
        problems = {failure.endpoint: failure} if failure else {}
        while True:
            now = monotonic()
            health = next_endpoint(self.healths, now)
            remaining = deadline - now
            pause = health.rests_until - now
            if remaining <= 0 or (pause > 0 and problems and remaining < 4 * FIRST_REST_SECONDS):
                raise _unreachable(problems)
            if pause >= remaining / 2:
                pause = remaining / 2 if problems else 0.0
            if pause > 0:
                self._sockets.sleep(pause)
                remaining -= pause
            untried = len(self.healths) - len(problems)
            share = monotonic() + remaining / max(1, untried)
            try:
                return self._connect_to(health, share)
            except EtcdError as error:
                health.failed(monotonic())
                name = str(health.endpoint)
                if not (isinstance(error.__cause__, TimeoutError) and name in problems):  # which says less
                    problems[name] = error
                if len(problems) == len(self.healths) and all(one.permanent for one in problems.values()):
                    raise _unreachable(problems) from error

    def _connect_to(self, health: EndpointHealth, deadline: float) -> GrpcConnection:
        endpoint = health.endpoint
        context = client_context(self._tls_files) if endpoint.tls else None
        channel: Channel = connect_tcp(self._sockets, endpoint, deadline)
        try:
            if context is not None:
                channel = TlsChannel(channel, context, endpoint, deadline)
            connection = GrpcConnection(channel, health)
            self.open.add(connection)
            connection.open(deadline)
        except BaseException:
            channel.close()
            raise
        return connection


def _unreachable(problems: dict[str, EtcdError]) -> EtcdError:
    if not problems:
        return DeadlinePassed("no time was left to connect to etcd")
    if len(problems) == 1:
        (only,) = problems.values()
        return only
    kinds = {type(problem) for problem in problems.values()}
    kind = kinds.pop() if len(kinds) == 1 and kinds <= {TlsFailed, NotEtcd} else ConnectFailed
    permanent = all(problem.permanent for problem in problems.values())
    said = "; ".join(map(str, problems.values()))
    return kind(f"no etcd endpoint could be reached: {said}", permanent=permanent)


def _forget_inherited() -> None:
    """In a forked child, at once: else its copies keep the parent's connections open after the parent has died."""
    for pool in list(_pools):
        pool.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)
