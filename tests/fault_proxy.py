"""A TCP proxy on loopback that misbehaves on command: cuts connections, swallows replies, stops, refuses."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

PIECE_BYTES = 1 << 16


class FaultProxy:
    """Forwards ``port`` to a server's port. Any thread may change how it behaves, also while connections are open."""

    def __init__(self, server_port: int) -> None:
        #: Where it leads to.
        self.server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        #: What the server says never arrives: requests take effect, and nobody hears of it.
        self.swallow_replies = False
        #: What clients say never arrives.
        self.swallow_requests = False
        #: Connections are closed as soon as they are accepted.
        self.refuse = False
        #: Seconds that everything takes each way.
        self.delay_seconds = 0.0
        self._connections: list[socket.socket] = []
        self._mutex = threading.Lock()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def heal(self) -> None:
        """Behave from now on; what was swallowed stays lost, so connections that lost something are cut."""
        self.swallow_replies = self.swallow_requests = self.refuse = False
        self.delay_seconds = 0.0
        self.cut()

    def cut(self) -> None:
        """Reset all connections; new ones are welcome."""
        with self._mutex:
            connections, self._connections = self._connections, []
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.server_port), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._mutex:
                self._connections += [client, server]
            for source, target, replies in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._forward, args=(source, target, replies), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, replies: bool) -> None:
        try:
            while piece := source.recv(PIECE_BYTES):
                if self.swallow_replies if replies else self.swallow_requests:
                    continue
                if self.delay_seconds:
                    time.sleep(self.delay_seconds)
                target.sendall(piece)
        except OSError:
            pass
        finally:
            for one in (source, target):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
