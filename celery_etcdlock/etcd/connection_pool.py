"""The connections of a client that wait for the next call.

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

from celery_etcdlock.etcd.connector import Connector
from celery_etcdlock.etcd.endpoints import Endpoint, EndpointHealth
from celery_etcdlock.etcd.grpc_connection import GrpcConnection
from celery_etcdlock.etcd.sockets import Sockets
from celery_etcdlock.etcd.tls import TlsFiles

MOST_IDLE_CONNECTIONS = 32

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool:
    """See the module."""

    def __init__(
        self, endpoints: Iterable[Endpoint], sockets: Sockets, tls_files: TlsFiles, idle_seconds: float
    ) -> None:
        self.healths = [EndpointHealth(endpoint) for endpoint in endpoints]
        random.shuffle(self.healths)
        self.connector = Connector(sockets, self.healths, tls_files)
        self.idle: deque[GrpcConnection] = deque()
        self._monotonic = sockets.monotonic
        self._idle_seconds = idle_seconds
        self._pid = os.getpid()
        _pools.add(self)

    def borrow(self, now: float, deadline: float) -> GrpcConnection:
        """A connection that nobody else uses, made anew if there is none; raises EtcdError."""
        while True:
            try:
                connection = self.idle.pop()
            except IndexError:
                return self.connector.connect(deadline)
            fresh = now - connection.idle_since < self._idle_seconds and connection.health.rests_until <= now
            if fresh and connection.still_alive():
                return connection
            self.discard(connection)

    def give_back(self, connection: GrpcConnection) -> None:
        """After a call, however it ended."""
        if not connection.reusable or self._pid != os.getpid():
            self.discard(connection)
            return
        now = connection.idle_since = self._monotonic()
        idle = self.idle
        idle.append(connection)
        try:
            while len(idle) > MOST_IDLE_CONNECTIONS or now - idle[0].idle_since > self._idle_seconds:
                self.discard(idle.popleft())
        except IndexError:
            pass  # another thread was quicker

    def discard(self, connection: GrpcConnection) -> None:
        self.connector.open.discard(connection)
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
        self.connector.forget_all()


def _forget_inherited() -> None:
    """In a forked child, at once: else its copies keep the parent's connections open after the parent has died."""
    for pool in list(_pools):
        pool.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)
