"""An HTTP/2 server that does what a test tells it to: a thread, a listening socket, h2's server side."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    PingAckReceived,
    RequestReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.settings import SettingCodes, Settings


class Session:
    """One accepted connection, as the script sees it."""

    def __init__(self, sock: socket.socket, server: ScriptedServer) -> None:
        self.sock, self.server = sock, server
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.bodies: dict[int, bytearray] = {}
        self.headers: dict[int, dict[bytes, bytes]] = {}
        self.pongs = self.settings_answered = 0
        self.reset: set[int] = set()
        self._ended: list[int] = []

    def begin(self) -> None:
        if self.server.settings:
            self.h2.local_settings = Settings(client=False, initial_values=self.server.settings)
            if SettingCodes.HEADER_TABLE_SIZE in self.server.settings:  # which h2 applies to changes alone
                self.h2.decoder.max_allowed_table_size = self.server.settings[SettingCodes.HEADER_TABLE_SIZE]
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            self.sock.sendall(data)

    def pump(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionResetError
        for event in self.h2.receive_data(data):
            if isinstance(event, RequestReceived):
                self.bodies[event.stream_id] = bytearray()
                self.headers[event.stream_id] = dict(event.headers)
            elif isinstance(event, DataReceived):
                self.bodies[event.stream_id] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self._ended.append(event.stream_id)
            elif isinstance(event, StreamReset):
                self.reset.add(event.stream_id)
            elif isinstance(event, PingAckReceived):
                self.pongs += 1
            elif isinstance(event, SettingsAcknowledged):
                self.settings_answered += 1
            elif isinstance(event, WindowUpdated):
                self.server.window_updates += 1
        self.flush()

    def request(self) -> int:
        """Wait for a whole request; its stream id."""
        while not self._ended:
            self.pump()
        self.server.requests += 1
        return self._ended.pop(0)

    def request_headers(self) -> int:
        """Wait for a request's headers, which may still have data to come."""
        while not self.headers:
            self.pump()
        self.server.requests += 1
        return max(self.headers)

    def send_headers(self, stream_id: int, *more: tuple[str, str], end: bool = False, status: str = "200") -> None:
        fixed = [(":status", status), ("content-type", "application/grpc")]
        self.h2.send_headers(stream_id, fixed + list(more), end_stream=end)
        self.flush()

    def send_message(self, stream_id: int, message: bytes | bytearray) -> None:
        body = b"\0" + len(message).to_bytes(4, "big") + message
        offset = 0
        while offset < len(body):
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)
            if room <= 0:
                self.pump()
                continue
            self.h2.send_data(stream_id, bytes(body[offset : offset + room]))
            self.flush()
            offset += room

    def send_trailers(self, stream_id: int, status: int = 0, message: str | None = None) -> None:
        trailers = [("grpc-status", str(status))]
        if message is not None:
            trailers.append(("grpc-message", message))
        self.h2.send_headers(stream_id, trailers, end_stream=True)
        self.flush()

    def answer(self, stream_id: int, message: bytes | bytearray) -> None:
        self.send_headers(stream_id)
        self.send_message(stream_id, message)
        self.send_trailers(stream_id)

    def goaway(self, last_stream_id: int, reason: bytes = b"") -> None:
        payload = last_stream_id.to_bytes(4, "big") + b"\0\0\0\0" + reason
        self.sock.sendall(len(payload).to_bytes(3, "big") + b"\x07\0\0\0\0\0" + payload)

    def until_closed(self) -> None:
        """Wait until the client closes."""
        with suppress(OSError):
            while self.sock.recv(65536):
                pass


class ScriptedServer:
    """``script(session)`` runs once for each connection, after the HTTP/2 settings were sent, h2's or these."""

    def __init__(
        self, *scripts: Callable[[Session], Any], raw: bool = False, settings: dict[SettingCodes, int] | None = None
    ) -> None:
        self._scripts, self._raw, self.settings = scripts, raw, settings
        self.requests = self.connections = self.window_updates = 0
        self.problems: list[BaseException] = []
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> ScriptedServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)
        return self

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socks.append(sock)
            script = self._scripts[min(self.connections, len(self._scripts) - 1)]
            self.connections += 1
            self._start(self._serve, sock, script)

    def _serve(self, sock: socket.socket, script: Callable[[Session], Any]) -> None:
        session = Session(sock, self)
        try:
            if not self._raw:
                session.begin()
            script(session)
        except OSError:
            pass
        except BaseException as problem:
            self.problems.append(problem)
        finally:
            sock.close()

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        assert not self.problems, self.problems


def echo(session: Session) -> None:
    """Answer every request with its own message."""
    while True:
        stream_id = session.request()
        session.answer(stream_id, session.bodies[stream_id][5:])


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
