"""An HPACK encoder that remembers what it wrote for a list of headers.

A client sends the same few lists of headers again and again. Once all fields of a list are in the connection's
dynamic table, its block is the same bytes each time, for as long as the table stays as it is: an entry added moves the
index of every other. So a block is remembered only if writing it added nothing, and only until something is added or
the peer changes the table's size (RFC 7541, sections 2.3 and 4.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpack import Encoder

__all__ = ["RememberingEncoder"]


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
        before = self._newest_entry()
        block = super().encode(wanted, huffman)
        if resized or self._newest_entry() is not before:
            self._blocks.clear()
        else:
            self._blocks[wanted] = block
        return block

    def _newest_entry(self) -> object:
        entries = self.header_table.dynamic_entries
        return entries[0] if entries else None
