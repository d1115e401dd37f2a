"""An HPACK encoder and a decoder that remember what a list of headers was as bytes.

A client sends the same few lists of headers again and again, and a server answers with a few. Once all fields of a list
are in the connection's dynamic table, its block is the same bytes each time, for as long as the table stays as it is:
an entry added moves the index of every other. So a block is remembered only if it left the table as it was, and only
until something is added or the table's size changes (RFC 7541, sections 2.3 and 4.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpack import Decoder, Encoder, HeaderTuple

__all__ = ["RememberingDecoder", "RememberingEncoder"]

#: A server may send what never repeats, an error's text for one.
MOST_BLOCKS_DECODED = 32


class RememberingEncoder(Encoder):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks: dict[tuple[Any, ...], bytes] = {}

    def encode(self, headers: Iterable[Any], huffman: bool = True) -> bytes:
        wanted = tuple(headers)
        resized = bool(self.table_size_changes)
        if not resized and (known := self._blocks.get(wanted)) is not None:
            return known
        before = _newest_entry(self)
        block = super().encode(wanted, huffman)
        if resized or _newest_entry(self) is not before:
            self._blocks.clear()
        else:
            self._blocks[wanted] = block
        return block


class RememberingDecoder(Decoder):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._lists: dict[tuple[bytes, bool], list[HeaderTuple]] = {}

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        known = self._lists.get((data, raw))
        if known is not None:
            return known.copy()
        newest, entries, size = _newest_entry(self), self._entries(), self.header_table.maxsize
        headers = list(super().decode(data, raw))
        same = _newest_entry(self) is newest and self._entries() == entries and self.header_table.maxsize == size
        if not same or len(self._lists) >= MOST_BLOCKS_DECODED:
            self._lists.clear()
        else:
            self._lists[data, raw] = headers.copy()
        return headers

    def _entries(self) -> int:
        return len(self.header_table.dynamic_entries)


def _newest_entry(coder: Encoder | Decoder) -> object:
    entries = coder.header_table.dynamic_entries
    return entries[0] if entries else None
