"""Colours where the terminal takes them, plain text where it doesn't."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from typing import TextIO

NARROWEST, WIDEST = 72, 110


@dataclass(frozen=True)
class Style:
    """How to print. ``unicode`` false: nothing but ASCII."""

    colour: bool
    unicode: bool
    width: int

    @classmethod
    def of(cls, stream: TextIO = sys.stdout) -> Style:
        forced = bool(os.environ.get("FORCE_COLOR"))
        colour = not os.environ.get("NO_COLOR") and (forced or stream.isatty()) and os.environ.get("TERM") != "dumb"
        encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
        width = shutil.get_terminal_size((100, 40)).columns
        return cls(bool(colour), encoding.startswith("utf"), max(NARROWEST, min(width, WIDEST)))

    def paint(self, text: str, code: str) -> str:
        """``code`` is an SGR code, like "1;31"."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def bold(self, text: str) -> str:
        return self.paint(text, "1")

    def dim(self, text: str) -> str:
        return self.paint(text, "2")

    def good(self, text: str) -> str:
        return self.paint(text, "1;32")

    def bad(self, text: str) -> str:
        return self.paint(text, "1;31")

    def pick(self, fancy: str, plain: str) -> str:
        return fancy if self.unicode else plain
