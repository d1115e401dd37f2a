"""Header blocks (RFC 7541): ours are constants, and the server's repeat.

Ours use no dynamic table. A connection says so once, by a size of zero at the start of its first block (4.2), and from
then on a request's block is the same bytes on any connection, whatever table the server offers. We offer none either.
Servers may use one all the same until they have read our settings, or for good. So a block of theirs is remembered,
with what it means, only if it left the table as it was, and only until the table changes: an entry added moves the
index of every other (2.3.3).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

from hpack import Decoder, HPACKError

from celery_etcdlock.etcd.frames import Http2Error

NO_TABLE = b"\x20"
LARGEST_LIST_BYTES = 65_536
#: A server may send what never repeats, an error's text for one.
MOST_BLOCKS_REMEMBERED = 32
#: Of the static table (appendix A): whole fields, and names.
_STATIC_FIELDS = {(b":method", b"POST"): 3, (b":scheme", b"http"): 6, (b":scheme", b"https"): 7}
_STATIC_NAMES = {b":authority": 1, b":path": 4, b"content-type": 31, b"user-agent": 58}

# hpack writes every header to its debug log.
if logging.getLogger("hpack").level == logging.NOTSET:
    logging.getLogger("hpack").setLevel(logging.INFO)


def header_block(fields: Iterable[tuple[bytes, bytes]], secret: bytes = b"") -> bytes:
    """The fields as literals without indexing (6.2.2); ``secret`` names the one that no proxy may index (6.2.3)."""
    block = bytearray()
    for name, value in fields:
        if whole := _STATIC_FIELDS.get((name, value)):
            block.append(0x80 | whole)
            continue
        block += _integer(_STATIC_NAMES.get(name, 0), 4, 0x10 if name == secret else 0)
        if name not in _STATIC_NAMES:
            block += _integer(len(name), 7) + name
        block += _integer(len(value), 7) + value
    return bytes(block)


def _integer(value: int, prefix_bits: int, above: int = 0) -> bytes:
    """5.1, behind the bits ``above`` the prefix."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([above | value])
    encoded = bytearray([above | most])
    value -= most
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class Fields(NamedTuple):
    """What we read of a list of headers; empty where it has no such field."""

    http_status: bytes = b""
    content_type: bytes = b""
    grpc_status: bytes = b""
    grpc_message: bytes = b""


_READ = {b":status": 0, b"content-type": 1, b"grpc-status": 2, b"grpc-message": 3}

#: Not only hpack's own: what else a hostile block brings out of it is the peer's doing. A time limit that strikes in it
#: isn't.
DECODING_FAILS = (HPACKError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError)


class RememberingDecoder:
    """See the module. Raises Http2Error."""

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=LARGEST_LIST_BYTES)
        self._known: dict[bytes, Fields] = {}

    def decode(self, block: bytes) -> Fields:
        known = self._known.get(block)
        if known is not None:
            return known
        size, newest = self._table()
        try:
            headers = list(self._decoder.decode(block, raw=True))
        except DECODING_FAILS as error:
            raise Http2Error("COMPRESSION_ERROR", f"headers that can't be read: {error!r}") from error
        found = [b""] * len(_READ)
        for name, value in headers:
            place = _READ.get(bytes(name))
            if place is not None:
                found[place] = bytes(value)
        fields = Fields(*found)
        size_now, newest_now = self._table()
        if newest_now is not newest or size_now != size or len(self._known) >= MOST_BLOCKS_REMEMBERED:
            self._known.clear()
        else:
            self._known[block] = fields
        return fields

    def _table(self) -> tuple[tuple[int, int], object]:
        table = self._decoder.header_table
        entries = table.dynamic_entries
        return (len(entries), table.maxsize), entries[0] if entries else None
