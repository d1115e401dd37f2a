"""Every Python block of every page is run and type-checked, so that a new page is checked by being there."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.docs.pages import CHECKED_BY, PAGES, ROOT, Block, blocks, python_blocks

HERE = Path(__file__).parent
#: What pages import and the test tools don't have, or have without types.
UNTYPED = ("flask", "fastapi", "pytest_celery", "pytest_docker_tools", "django_celery_beat", "django")
WITH_CODE = sorted({block.page for block in python_blocks()})


def test_there_are_blocks_to_check() -> None:
    assert {"README.md", "docs/locks.md", "docs/recipes.md", "docs/tutorial.md"} <= set(WITH_CODE)


@pytest.mark.parametrize("page", WITH_CODE)
def test_blocks_run(page: str) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "run_blocks.py", page],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "ETCDLOCK_ENDPOINTS": "memory://"},
    )
    assert done.returncode == 0, done.stderr


def test_blocks_are_typed(tmp_path: Path) -> None:
    """One file for each page, each line where it is on the page."""
    for page in WITH_CODE:
        found = [block for block in blocks(page) if block.language in {"python", "py"}]
        typed = [block for block in found if block.check not in {"run", "no"}]
        (tmp_path / (page.replace("/", "_").removesuffix(".md").replace("-", "_") + ".py")).write_text(
            _as_module(typed)
        )
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\n" + "".join(f"[mypy-{name}.*]\nignore_missing_imports = True\n" for name in UNTYPED))
    # Not from the repository's root: there "docs" and "tests" are packages of their own.
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--check-untyped-defs"]
    command += ["--follow-imports=silent", "--disable-error-code=no-redef"]
    command += ["--disable-error-code=empty-body", "--cache-dir", str(ROOT / ".mypy_cache" / "docs"), str(tmp_path)]
    search = os.pathsep.join([str(HERE / "stubs"), str(ROOT)])
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=110, env={**os.environ, "MYPYPATH": search}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _as_module(found: list[Block]) -> str:
    lines = ["from names import *  # noqa"]
    for block in found:
        text = block.text
        if _awaits(text):
            text = textwrap.indent(text, "    ")
            lines += [""] * (block.line - 2 - len(lines)) + [f"async def block_{block.line}() -> None:"]
        else:
            lines += [""] * (block.line - 1 - len(lines))
        lines += text.rstrip("\n").split("\n")
    return "\n".join(lines) + "\n"


def _awaits(text: str) -> bool:
    try:
        compile(text, "block", "exec", dont_inherit=True)
    except SyntaxError:
        compile(text, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        return True
    return False


def test_pages_are_checked_where_it_says() -> None:
    for page, test in CHECKED_BY.items():
        if page in PAGES:
            assert Path(page).name in (ROOT / test).read_text()


def test_pages_are_all_there() -> None:
    assert all((ROOT / page).exists() for page in PAGES)
