"""Runs the Python blocks of one page, top to bottom, with locks in memory: ``python run_blocks.py PAGE``.

A block sees what those before it defined, as its reader does. Each is a module of its own for Celery, so two tasks of
one name in two blocks are two tasks.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import sys
import traceback
import types
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent / "stubs"), str(Path(__file__).parents[2])]

import names  # noqa: E402

from celery_etcdlock.testing import use_locks  # noqa: E402
from tests.docs.pages import ROOT, blocks  # noqa: E402


def main(page: str) -> int:
    namespace: dict[str, Any] = {name: getattr(names, name) for name in names.__all__}
    failures = 0
    for block in blocks(page):
        if block.language not in {"python", "py"} or block.check in {"types", "no"}:
            continue
        module = types.ModuleType(f"block_{block.line}")
        sys.modules[module.__name__] = module
        module.__dict__.update(namespace, __name__=module.__name__)
        try:
            source = "\n" * (block.line - 1) + block.text
            code = compile(source, str(ROOT / page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            with use_locks("memory://"), contextlib.redirect_stdout(sys.stderr):
                result = eval(code, module.__dict__)
                if inspect.iscoroutine(result):
                    asyncio.run(result)
                names.app.finalize()
                _ = names.app.tasks  # which makes them: an option that is wrong is refused now
        except Exception:
            failures += 1
            print(f"{block.where}\n{traceback.format_exc(limit=-3)}", file=sys.stderr)
        namespace.update({name: value for name, value in module.__dict__.items() if not name.startswith("__")})
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
