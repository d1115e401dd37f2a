"""What a server says in one call, as bytes, with all that HTTP/2 lets it say; and a channel that plays it."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from hpack import Encoder

from celery_etcdlock.etcd.endpoints import Endpoint, EndpointHealth
from celery_etcdlock.etcd.frames import frame
from celery_etcdlock.etcd.grpc_connection import GrpcConnection

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
MESSAGE = bytes(range(200))
REQUEST = b"request"


def settings(**values: int) -> bytes:
    numbers = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5, "future": 999}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", numbers[name], value) for name, value in values.items()))


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def grpc(message: bytes) -> bytes:
    return b"\0" + number(len(message)) + message


def headers(*fields: tuple[str, str], stream: int = 1, flags: int = 4) -> bytes:
    return frame(HEADERS, flags, stream, Encoder().encode(fields))


BEGINNING = headers((":status", "200"), ("content-type", "application/grpc"))
TRAILERS = headers(("grpc-status", "0"), ("grpc-message", ""), flags=5)


def plain_reply(message: bytes = MESSAGE, stream: int = 1) -> bytes:
    """What etcd sends."""
    return (
        headers((":status", "200"), ("content-type", "application/grpc"), stream=stream)
        + frame(DATA, 0, stream, grpc(message))
        + headers(("grpc-status", "0"), stream=stream, flags=5)
    )


def odd_reply() -> bytes:
    """The same reply, by a server that uses everything: a table, padding, priorities, CONTINUATION, 1xx, new frames."""
    encoder = Encoder()
    first = encoder.encode([(":status", "200"), ("content-type", "application/grpc"), ("server", "odd")])
    trailers = encoder.encode([("grpc-status", "0"), ("server", "odd"), ("grpc-message", "")])
    body = grpc(MESSAGE)
    return b"".join(
        (
            frame(WINDOW_UPDATE, 0, 0, number(1000)),
            frame(PING, 0, 0, b"pingping"),
            headers((":status", "103"), ("link", "x")),
            frame(0xEE, 0xFF, 7, b"from the future"),
            frame(HEADERS, 0x28, 1, b"\x03" + number(0) + b"\x10" + first[:5] + b"\0\0\0"),
            frame(CONTINUATION, 0, 1, first[5:9]),
            frame(CONTINUATION, 0, 1, b""),
            frame(CONTINUATION, 4, 1, first[9:]),
            frame(DATA, 0, 1, b""),
            frame(DATA, 8, 1, b"\x05" + body[:3] + bytes(5)),
            settings(window=70_000, frame=20_000, streams=1, table=0, future=5),
            frame(PRIORITY, 0, 9, number(3) + b"\x01"),
            frame(WINDOW_UPDATE, 0, 1, number(5)),
            frame(DATA, 0, 1, body[3:100]),
            frame(SETTINGS, 1, 0, b""),
            frame(PING, 1, 0, b"etcdlock"),
            frame(DATA, 8, 1, b"\x00" + body[100:]),
            frame(HEADERS, 5, 1, trailers),
        )
    )


class Played:
    """A channel whose peer says these pieces, one a ``receive``, and then nothing more, or the end."""

    def __init__(self, pieces: Iterable[bytes], *, then_end: bool = True) -> None:
        self._pieces = [piece for piece in pieces if piece][::-1]
        self._then_end = then_end
        self.sends: list[bytes] = []

    @property
    def sent(self) -> bytes:
        return b"".join(self.sends)

    def send(self, data: bytes, deadline: float) -> None:
        self.sends.append(data)

    def receive(self, deadline: float) -> bytes:
        if self._pieces:
            return self._pieces.pop()
        if self._then_end:
            return b""
        raise TimeoutError("deadline passed")

    def receive_now(self) -> bytes | None:
        return self._pieces.pop() if self._pieces else None

    def interrupt(self) -> None: ...
    def close(self) -> None: ...
    def forget(self) -> None: ...


def call(channel: Played, request: bytes = REQUEST) -> bytes:
    """One whole call on a new connection; raises EtcdError."""
    connection = GrpcConnection(channel, EndpointHealth(Endpoint("played", 1)), lambda: 0.0)
    connection.open(1.0)
    return connection.call(b"\x83", request, 1.0)
