"""``python -m examples NAME``: runs one example and says whether it went as promised."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from examples.demo.__main__ import Stopped, no_more_signals, signals_raise
from examples.demo.process import DemoFailed
from examples.support import NotAsPromised, say, servers

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in {"__init__", "__main__", "support"})


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in NAMES:
        say("python -m examples NAME, with NAME one of")
        for name in NAMES:
            say(f"  {name:<14}  {about(name).splitlines()[0]}")
        return 2 if arguments else 0
    [name] = arguments
    say(about(name) + "\n")
    try:
        with signals_raise(), servers():
            try:
                importlib.import_module(f"examples.{name}").main()
            finally:
                no_more_signals()
    except ModuleNotFoundError as missing:
        say(f"The example needs {missing.name}: pip install -e '.[examples]', or make setup")
        return 1
    except NotAsPromised:
        return 1
    except DemoFailed as failure:
        say(f"The example failed: {failure}")
        for process in failure.logs:
            say(f"--- the end of {process.name}'s log\n{process.tail()}")
        return 1
    except Stopped as stop:
        say(f"\n{stop}: stopped, with all that was started.")
        return 128 + stop.number
    return 0


def about(name: str) -> str:
    """The example's docstring. Read, not imported: an example may need more than this list does."""
    return (ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or "").strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
