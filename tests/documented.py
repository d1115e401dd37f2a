"""The Python blocks of a page in docs/, to be run as the tests that they are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def python_blocks(page: str, heading: str) -> list[str]:
    """Those under ``## heading``."""
    sections = (ROOT / page).read_text().split("\n## ")
    [section] = [section for section in sections if section.startswith(f"{heading}\n")]
    return _BLOCK.findall(section)
