"""The memory of this process, as Linux tells it."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["memory_kilobytes"]


def memory_kilobytes() -> dict[str, int]:
    """``rss``, and ``private``: what only this process has, not shared with the parent that forked it."""
    text = Path("/proc/self/smaps_rollup").read_text()

    def total(pattern: str) -> int:
        return sum(int(kilobytes) for kilobytes in re.findall(rf"^{pattern}:\s+(\d+) kB$", text, re.MULTILINE))

    return {"rss": total("Rss"), "private": total("Private_(?:Clean|Dirty)")}
