"""One input of the fuzzers: what a server says, in pieces, to a call or a stream of ours.

Nothing may come out of it but an ``EtcdError`` or a whole reply, and no call may go on after its time. The first byte
of an input says how the rest is played: in pieces of which size, with a greeting before it, with silence or the end
behind it, to a call or to a stream.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from celery_etcdlock.etcd.endpoints import Endpoint, EndpointHealth
from celery_etcdlock.etcd.errors import EtcdError
from celery_etcdlock.etcd.grpc_connection import GrpcConnection
from tests.unit.etcd.recorded import BEGINNING, DATA, Played, odd_reply, plain_reply, settings

GREETING = settings(window=65535)
PIECES = (1, 2, 7, 9, 64, 1000, 16384, 1 << 30)
#: What mutations start from.
SEEDS = [bytes([how]) + what for how in (0x07, 0x0F, 0x0A, 0x02, 0x47, 0x4A) for what in (plain_reply(), odd_reply())]
SEEDS += [
    b"\x37" + GREETING + odd_reply(),
    b"\x36HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\x37\x15\x03\x01\x00\x02\x02\x16",
]


def play(data: bytes) -> bool:
    """Play one input; whether a reply was accepted. Raises AssertionError, or whatever came out, for a fault."""
    how, said = data[0] if data else 0, data[1:]
    size = PIECES[how & 7]
    pieces = [said[start : start + size] for start in range(0, min(len(said), 2000 * size), size)]
    if not how & 0x30:
        pieces.insert(0, GREETING)
    channel = Played(pieces, then_end=bool(how & 8))
    connection = GrpcConnection(channel, EndpointHealth(Endpoint("fuzzed", 1)), clock())
    try:
        connection.open(1000.0)
        if how & 0x40:
            return _stream(connection)
        reply = connection.call(b"\x83", b"request", 1000.0)
    except EtcdError:
        assert not connection.reusable or connection.still_alive() in (True, False)
        return False
    assert whole_reply(b"".join(pieces), reply), "a reply was accepted that isn't whole"
    return True


def _stream(connection: GrpcConnection) -> bool:
    connection.start_stream(b"\x83", b"request", 1000.0, half_close=False)
    messages = 0
    try:
        while connection.receive(1000.0) is not None:
            messages += 1
    except EOFError:
        pass
    connection.end_stream()
    return messages > 0


def clock() -> Callable[[], float]:
    """A clock that runs on with each look at it, so that what waits for ever comes to its deadline."""
    ticks = iter(range(100_000))
    return lambda: float(next(ticks)) / 10


def whole_reply(said: bytes, reply: bytes) -> bool:
    """Read once more, by the simplest reader that there could be: all DATA of stream 1, and a frame that ends it."""
    position, body, ended = 0, b"", False
    while position + 9 <= len(said) and not ended:
        length = int.from_bytes(said[position : position + 3], "big")
        kind, flags, stream = said[position + 3], said[position + 4], said[position + 5 : position + 9]
        payload = said[position + 9 : position + 9 + length]
        if len(payload) < length:
            return False
        if int.from_bytes(stream, "big") & 0x7FFFFFFF == 1:
            if kind == DATA:
                body += payload[1 : len(payload) - payload[0]] if flags & 8 else payload
            # HEADERS that end the stream may be continued: the reply ends with the block.
            ended = kind == 1 and bool(flags & 1)
        position += 9 + length
    return ended and body[:1] == b"\0" and body[1:5] == len(reply).to_bytes(4, "big") and body[5:] == reply


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The input with some of what goes wrong on a wire, or is done to it."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        kind = chance.randrange(6)
        place = chance.randrange(len(changed)) if changed else 0
        if kind == 0:
            changed[place : place + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            changed[place : place + 1] = bytes([changed[place] ^ 1 << chance.randrange(8)]) if changed else b""
        elif kind == 2:
            del changed[place : place + chance.randint(1, 30)]
        elif kind == 3:
            changed[place:place] = chance.randbytes(chance.randint(1, 12))
        elif kind == 4:
            start = chance.randrange(len(changed)) if changed else 0
            changed[place:place] = changed[start : start + chance.randint(1, 60)]
        else:
            changed[place:place] = chance.choice((BEGINNING, GREETING, plain_reply(b"x"), odd_reply()))
    return bytes(changed)
