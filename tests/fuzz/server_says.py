"""One input of the fuzzers: what a server says, in pieces, to a call or a stream of ours.

Nothing may come out of it but an ``EtcdError`` or whole messages, in order, no call may go on after its time, and no
connection be used again that broke off in the middle of one. The first byte of an input says how the rest is played: in
pieces of which size, with a greeting before it, with silence or the end behind it, to a call or to a stream.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from hpack import Decoder, HPACKError

from celery_etcdlock.etcd.errors import EtcdError
from celery_etcdlock.etcd.grpc_connection import GrpcConnection
from tests.unit.etcd.recorded import (
    BEGINNING,
    CONTINUATION,
    DATA,
    ETCD_GREETS,
    HEADERS,
    MESSAGE,
    TRAILERS,
    WATCH_OF_ETCD,
    Played,
    frame,
    grpc,
    headers,
    odd_reply,
    opened,
    plain_reply,
    settings,
)

GREETING = settings(window=65535)
DEADLINE = 1000.0
PIECES = (1, 2, 7, 9, 64, 1000, 16384, 1 << 30)
FAILED = BEGINNING + frame(DATA, 0, 1, grpc(MESSAGE)) + headers(("grpc-status", "13"), flags=5)
MESSAGES = BEGINNING + b"".join(frame(DATA, 0, 1, grpc(MESSAGE[:size])) for size in (1, 30, 0, 200)) + TRAILERS
#: What mutations start from.
SEEDS = [bytes([how]) + what for how in (0x07, 0x0F, 0x0A, 0x02, 0x47, 0x4A) for what in (plain_reply(), odd_reply())]
SEEDS += [bytes([how]) + what for how in (0x47, 0x4B) for what in (MESSAGES, WATCH_OF_ETCD, FAILED)]
SEEDS += [
    b"\x07" + FAILED,
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
        pieces.insert(0, ETCD_GREETS)
    channel = Played(pieces, then_end=bool(how & 8), tick=0.1)
    messages: list[bytes] = []
    ended = False
    try:
        connection = opened(channel, DEADLINE)
        try:
            ended = _stream(connection, messages) if how & 0x40 else _call(connection, messages)
        except EtcdError:
            assert not connection.reusable or connection._protocol.reply.ended, "a call that broke off isn't the last"
    except EtcdError:
        pass
    assert channel.now < DEADLINE + 1, "a call went on after its time"
    heard = b"".join(pieces)
    assert are_whole(heard, messages, ended=ended), "a reply was accepted that isn't whole"
    return bool(messages)


def _call(connection: GrpcConnection, messages: list[bytes]) -> bool:
    messages.append(connection.call(b"\x83", b"request", DEADLINE))
    return True


def _stream(connection: GrpcConnection, messages: list[bytes]) -> bool:
    """Whether the server has ended it well."""
    connection.start_stream(b"\x83", b"request", DEADLINE, half_close=False)
    try:
        while (message := connection.receive(DEADLINE)) is not None:
            messages.append(message)
    except EOFError:
        return True
    finally:
        connection.end_stream()
    return False


def are_whole(said: bytes, messages: Sequence[bytes], *, ended: bool) -> bool:
    """Whether these are the first messages of stream 1, or, if it has ``ended``, all, with a status of 0."""
    body, status = read_again(said)
    claimed = b"".join(map(grpc, messages))
    return (body, status) == (claimed, b"0") if ended else body.startswith(claimed)


def read_again(said: bytes) -> tuple[bytes, bytes | None]:
    """The body and status of stream 1, by the simplest reader that there could be, which forgives everything."""
    position, body, block, ends = 0, b"", b"", False
    decoder = Decoder()
    while position + 9 <= len(said):
        length = int.from_bytes(said[position : position + 3], "big")
        kind, flags = said[position + 3], said[position + 4]
        ours = int.from_bytes(said[position + 5 : position + 9], "big") & 0x7FFFFFFF == 1
        payload = said[position + 9 : position + 9 + length]
        position += 9 + length
        if len(payload) < length:
            break
        if kind in (DATA, HEADERS) and flags & 8:
            payload = payload[1 : len(payload) - payload[0]] if payload else b""
        if kind == DATA and ours:
            body += payload
            if flags & 1:
                break
        if kind == HEADERS:
            block, ends = b"", bool(flags & 1)
            payload = payload[5:] if flags & 0x20 else payload
        if kind in (HEADERS, CONTINUATION):
            block += payload
            if flags & 4:
                try:
                    fields = {bytes(name): bytes(value) for name, value in decoder.decode(block, raw=True)}
                except (HPACKError, ValueError):
                    break
                if ends and ours:
                    return body, fields.get(b"grpc-status")
    return body, None


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
