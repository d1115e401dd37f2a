"""The pages that people read, and the code blocks in them.

A comment right above a block's fence says how it is checked, where that isn't the usual way:

``<!-- check: types -->``   it isn't run here (it needs a server, say), only type-checked
``<!-- check: run -->``     it is run, and type checkers can't follow it
``<!-- check: no -->``      neither; the comment goes on and says who checks it
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "examples/README.md"),
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
)

#: Pages whose Python blocks are one project, which a test of its own puts together and runs.
CHECKED_BY = {"docs/django.md": "tests/integration/test_django_page.py"}

_FENCE = re.compile(r"^( *)```(\w*)(.*)$")
_CHECK = re.compile(r"<!-- check: (types|run|no)\b.*-->")


@dataclass(frozen=True)
class Block:
    page: str
    #: Of its first line of code, counted from 1.
    line: int
    language: str
    #: What stands behind the language, a title say.
    info: str
    check: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    found: list[Block] = []
    lines = (ROOT / page).read_text("utf-8").split("\n")
    at = 0
    while at < len(lines):
        opening = _FENCE.match(lines[at])
        if opening is None:
            at += 1
            continue
        indent, language, info = opening.groups()
        end = at + 1
        while lines[end].strip() != "```":
            end += 1
        above = _CHECK.search(lines[at - 1]) if at else None
        text = "\n".join(line.removeprefix(indent) for line in lines[at + 1 : end]) + "\n"
        found.append(Block(page, at + 2, language, info.strip(), above[1] if above else "", text))
        at = end + 1
    return found


def python_blocks() -> list[Block]:
    here = [page for page in PAGES if page not in CHECKED_BY]
    return [block for page in here for block in blocks(page) if block.language in {"python", "py"}]


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")
