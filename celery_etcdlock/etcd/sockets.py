"""Sockets and clocks in two flavours, and a plain TCP channel over them.

Under gevent's monkey-patching the standard names are cooperative: they switch greenlets and belong to one hub.
That is right for tasks, which run in greenlets, and wrong for the thread that renews leases, which must go on
while a greenlet hogs the hub. So ``patched()`` is whatever the process uses, and ``native()`` the operating
system's own. Without gevent they are the same. gevent is never imported here, only noticed.

Nothing here or in the client holds a mutex, since a lock of either flavour would be wrong for the other and
could be held by a thread that doesn't exist after a fork: shared state is a deque and plain attributes.
"""

from __future__ import annotations

import codecs
import math
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from celery_etcdlock.etcd.endpoints import Endpoint
from celery_etcdlock.etcd.errors import ConnectFailed
from celery_etcdlock.native import original

# Loaded now: Python does it in the first getaddrinfo, and a process that forks while one of its threads is in there
# (a worker's MainProcess that connects while its pool starts) leaves the child a module whose lock nobody gives back.
codecs.lookup("idna")

RECEIVE_BYTES = 65536
#: For a peer that is gone without a word, where the system has them: in seconds, but for the number of probes, and for
#: how long data may be unacknowledged, in milliseconds. macOS calls the first one TCP_KEEPALIVE.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPALIVE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}

Address = tuple[int, int, int, str, Any]  # as getaddrinfo has it


@dataclass(frozen=True)
class Sockets:
    """What differs between the flavours. Both have the same clock."""

    socket_class: Callable[..., socket.socket]
    sleep: Callable[[float], None]


def patched() -> Sockets:
    """The flavour of the process: cooperative where gevent has patched the standard library."""
    return Sockets(socket.socket, time.sleep)


def native() -> Sockets:
    """The operating system's own, for a real thread, even where gevent has patched the standard library."""
    return Sockets(original("socket", "socket"), original("time", "sleep"))


class NotAllSent(TimeoutError):
    """The deadline passed before the kernel took the last byte."""


def _seconds_left(deadline: float) -> float:
    remaining = deadline - monotonic()
    if remaining <= 0:
        raise TimeoutError("deadline passed")
    return remaining


class Channel(Protocol):
    """Bytes both ways on one connection. ``deadline`` is a time of ``monotonic``."""

    def send(self, data: bytes, deadline: float) -> None: ...
    def receive(self, deadline: float) -> bytes:
        """At least one byte, or none at the end. Raises TimeoutError without an errno past the deadline."""

    def receive_now(self) -> bytes | None:
        """What has arrived already: None for nothing, empty at the end."""

    def interrupt(self) -> None:
        """Make a ``receive`` that another thread is in return now; the channel is unusable afterwards."""

    def close(self) -> None: ...
    def forget(self) -> None:
        """After a fork: give up the child's copy of the descriptor; says nothing to the peer."""


class PlainChannel:
    """A connected TCP socket of any flavour."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def send(self, data: bytes, deadline: float) -> None:
        self._socket.settimeout(_seconds_left(deadline))
        self._socket.sendall(data)

    def receive(self, deadline: float) -> bytes:
        self._socket.settimeout(_seconds_left(deadline))
        return self._socket.recv(RECEIVE_BYTES)

    def receive_now(self) -> bytes | None:
        self._socket.settimeout(0)
        try:
            return self._socket.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return None

    def interrupt(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()

    def forget(self) -> None:
        with suppress(OSError):
            descriptor = self._socket.detach()
            if descriptor >= 0:
                os.close(descriptor)


class PolledChannel(PlainChannel):
    """A connected TCP socket of the operating system that never blocks.

    Python asks the kernel for each ``settimeout``; a socket that stays as it is saves two system calls of three.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        sock.setblocking(False)
        poll = original("select", "poll")
        self._readable: select.poll = poll()
        self._readable.register(sock.fileno(), select.POLLIN)
        self._writable: select.poll = poll()
        self._writable.register(sock.fileno(), select.POLLOUT)

    def send(self, data: bytes, deadline: float) -> None:
        sent = 0
        while True:
            try:
                sent += self._socket.send(memoryview(data)[sent:] if sent else data)
            except (BlockingIOError, InterruptedError):
                remaining = deadline - monotonic()
                if remaining <= 0 or not self._writable.poll(math.ceil(remaining * 1000)):
                    raise NotAllSent("deadline passed") from None
            if sent >= len(data):
                return

    def receive(self, deadline: float) -> bytes:
        while True:
            # Not the kernel's SO_RCVTIMEO, which saves this call: it starts anew with each signal.
            if not self._readable.poll(math.ceil(_seconds_left(deadline) * 1000)):
                raise TimeoutError("deadline passed")
            try:
                return self._socket.recv(RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                continue

    def receive_now(self) -> bytes | None:
        return super().receive_now() if self._readable.poll(0) else None


def resolve(sockets: Sockets, host: str, port: int, deadline: float) -> list[Address]:
    """The addresses of a host. The system's resolver takes no deadline, so names are looked up in a real thread."""
    getaddrinfo = original("socket", "getaddrinfo")

    def look_up(flags: int = 0) -> list[Address]:
        found: list[Address] = getaddrinfo(host, port, 0, socket.SOCK_STREAM, socket.IPPROTO_TCP, flags)
        return found

    with suppress(OSError):
        return look_up(socket.AI_NUMERICHOST)

    outcome: list[list[Address] | BaseException] = []

    def in_thread() -> None:
        try:
            outcome.append(look_up())
        except BaseException as error:
            outcome.append(error)

    original("_thread", "start_new_thread")(in_thread, ())
    pause = 0.0005
    while not outcome:
        sockets.sleep(min(pause, _seconds_left(deadline)))
        pause = min(pause * 2, 0.02)
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


def connect_tcp(sockets: Sockets, endpoint: Endpoint, deadline: float) -> PlainChannel:
    """Connect to the first address of the host that answers; raises ConnectFailed."""
    shown = str(endpoint)
    try:
        addresses = resolve(sockets, endpoint.host, endpoint.port, deadline)
    except TimeoutError:
        raise ConnectFailed("the host name wasn't resolved in time", endpoint=shown) from None
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConnectFailed(f"the host name can't be resolved: {reason}", endpoint=shown) from error
    problem: OSError | None = None
    for position, address in enumerate(addresses):
        now = monotonic()
        share = now + (deadline - now) / (len(addresses) - position)
        try:
            return _connect_one(sockets, address, share)
        except OSError as error:
            problem = error
    if isinstance(problem, TimeoutError) and problem.errno is None:
        raise ConnectFailed("no connection in time", endpoint=shown) from problem
    reason = (problem.strerror or str(problem)) if problem else "no address"
    raise ConnectFailed(reason, endpoint=shown) from problem


def _connect_one(sockets: Sockets, address: Address, deadline: float) -> PlainChannel:
    family, kind, protocol, _, where = address
    sock = sockets.socket_class(family, kind, protocol)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            if hasattr(socket, option):
                with suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        sock.settimeout(_seconds_left(deadline))
        sock.connect(where)
        return PolledChannel(sock) if sockets.socket_class is original("socket", "socket") else PlainChannel(sock)
    except BaseException:
        sock.close()
        raise
