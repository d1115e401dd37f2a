"""Header blocks (RFC 7541): ours are constants, and the server's repeat.

Ours use no dynamic table: each says so, by a size of zero at its start (4.2), and so a request's block is the same
bytes on any connection, whatever table the server offers. We offer none either. Servers may use one all the same until
they have read our settings, or for good. So a block of theirs is remembered, with what it means, only if it left the
table as it was, and only until the table changes: an entry added moves the index of every other (2.3.3).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

from hpack import Decoder, Encoder, HPACKError

from celery_etcdlock.etcd.frames import Http2Error

LARGEST_LIST_BYTES = 65_536
#: A server may send what never repeats, an error's text for one.
MOST_BLOCKS_REMEMBERED = 32

# hpack writes every header to its debug log.
if logging.getLogger("hpack").level == logging.NOTSET:
    logging.getLogger("hpack").setLevel(logging.INFO)


def header_block(fields: Iterable[tuple[bytes, bytes]], secret: bytes = b"") -> bytes:
    """``secret`` names the field that no proxy may index (6.2.3)."""
    encoder = Encoder()
    encoder.header_table_size = 0
    return encoder.encode([(name, value, name == secret) for name, value in fields], huffman=False)


class Fields(NamedTuple):
    """What we read of a list of headers; empty where it has no such field."""

    http_status: bytes = b""
    content_type: bytes = b""
    grpc_status: bytes = b""
    grpc_message: bytes = b""


NO_FIELDS = Fields()
_NAMES = (b":status", b"content-type", b"grpc-status", b"grpc-message")

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
            found = {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}
        except DECODING_FAILS as error:
            raise Http2Error("COMPRESSION_ERROR", f"headers that can't be read: {error!r}") from error
        fields = Fields(*[found.get(name, b"") for name in _NAMES])
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
