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


ETCD_GREETS = bytes.fromhex("00000c0400000000000005000040000003ffffffff000000040100000000")
#: What etcd 3.5.1 said to a watch: it is created, a key is put, another, the first again, and that one is deleted.
#: Settings answered, room, a PING, five messages.
WATCH_OF_ETCD = bytes.fromhex(
    "0000040800000000000000000f00000806000000000002041010090e070700001001040000000120880f108b1d75d0620d263d4c4d656400"
    "0023000000000001000000001e0a1a08e9c8baef8fdce884f10110a5bef386e3fcf389cb01180120021801"
    "000034000000000001000000002f0a1a08e9c8baef8fdce884f10110a5bef386e3fcf389cb01180220025a11120f0a026b31100218022001"
    "2a036f6e65"
    "000034000000000001000000002f0a1a08e9c8baef8fdce884f10110a5bef386e3fcf389cb01180320025a11120f0a026b32100318032001"
    "2a0374776f"
    "00004700000000000100000000420a1a08e9c8baef8fdce884f10110a5bef386e3fcf389cb01180420025a2412110a026b31100218042002"
    "2a0574687265651a0f0a026b311002180220012a036f6e65"
    "000040000000000001000000003b0a1a08e9c8baef8fdce884f10110a5bef386e3fcf389cb01180520025a1d080112060a026b3118051a11"
    "0a026b311002180420022a057468726565"
)
WATCHED = [(0, b"k1", b"one"), (0, b"k2", b"two"), (0, b"k1", b"three"), (1, b"k1", b"")]


class Played:
    """A channel whose peer says these pieces, one a ``receive``, and then nothing more, or the end.

    It keeps its own time, ``now``: waiting in vain takes until the deadline, all else takes none, but for ``tick``.
    """

    def __init__(self, pieces: Iterable[bytes], *, then_end: bool = True, tick: float = 0.0) -> None:
        self._pieces = [piece for piece in pieces if piece][::-1]
        self._then_end = then_end
        self.sends: list[bytes] = []
        self.now = 0.0
        self._tick = tick

    @property
    def sent(self) -> bytes:
        return b"".join(self.sends)

    def send(self, data: bytes, deadline: float) -> None:
        self.sends.append(data)

    def receive(self, deadline: float) -> bytes:
        self.now += self._tick
        if self.now < deadline:
            if self._pieces:
                return self._pieces.pop()
            if self._then_end:
                return b""
            self.now = deadline
        raise TimeoutError("deadline passed")

    def receive_now(self) -> bytes | None:
        return self._pieces.pop() if self._pieces else None

    def interrupt(self) -> None: ...
    def close(self) -> None: ...
    def forget(self) -> None: ...


def call(channel: Played, request: bytes = REQUEST) -> bytes:
    """One whole call on a new connection; raises EtcdError."""
    return opened(channel).call(b"\x83", request, 1.0)


def opened(channel: Played, deadline: float = 1.0) -> GrpcConnection:
    connection = GrpcConnection(channel, EndpointHealth(Endpoint("played", 1)), lambda: channel.now)
    connection.open(deadline)
    return connection


def watched(channel: Played, messages: int = 5) -> list[bytes | None]:
    """So many messages of a watch on a new connection."""
    connection = opened(channel)
    connection.start_stream(b"\x83", REQUEST, 1.0, half_close=False)
    return [connection.receive(1.0) for _ in range(messages)]
