"""Links among the pages, as GitHub follows them: Sphinx checks its own reading of them (``make docs``)."""

from __future__ import annotations

import posixpath
import re

import pytest

from tests.docs.pages import PAGES, ROOT, text_of

LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", _prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        while slug in found:
            slug += "-1"
        found.add(slug)
    return found


def _prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    for target in LINK.findall(_prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        name = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
        assert (ROOT / name).exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(name), f"{page}: {target}"


def test_an_anchor_that_is_not_there_would_be_seen() -> None:
    assert "figures" in anchors("docs/gate.md")
    assert "figure" not in anchors("docs/gate.md")
