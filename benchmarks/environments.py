"""What peers need, made once under ``.tools/``: an environment of its own for each Python peer, a binary for Go's.

One that can't be made raises ``NotInstalled``, and becomes a row that says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.places import ROOT, TOOLS, environment

__all__ = ["NotInstalled", "compiled_go", "python_310", "python_environment"]

BUILD_SECONDS = 600
CONSTRAINTS = ROOT / "constraints.txt"


class NotInstalled(Exception):
    """A peer's requirements can't be had here; the message says which and why."""


def python_environment(
    name: str,
    packages: Sequence[str],
    *,
    imports: str,
    interpreter: Callable[[], str] = lambda: sys.executable,
    pinned_as_ours: bool = False,
) -> str:
    """The interpreter of an environment with ``packages``, in which ``import imports`` works."""
    directory = TOOLS / name
    python = directory / "bin" / "python"
    stamp = directory / "complete"
    made_of = "\n".join([interpreter(), *packages])
    if not stamp.exists() or stamp.read_text() != made_of:
        shutil.rmtree(directory, ignore_errors=True)
        _build(f"{name}'s environment", [interpreter(), "-m", "venv", str(directory)])
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        _build(packages[0], install + (["--constraint", str(CONSTRAINTS)] if pinned_as_ours else []))
        _build(packages[0], [str(python), "-c", f"import {imports}"])
        stamp.write_text(made_of)
    return str(python)


def python_310() -> str:
    """Python 3.10 if there is one: the last for which a protobuf below 3.21 has its fast C++ half as a wheel."""
    if sys.version_info[:2] == (3, 10):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for candidate in (*map(str, sorted(pyenv.glob("3.10.*/bin/python"))), shutil.which("python3.10")):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return sys.executable


def compiled_go(source: Path, name: str) -> str:
    """The binary of a Go program, built again whenever the compiler finds it old."""
    go = shutil.which("go")
    if go is None:
        raise NotInstalled("there is no go on PATH")
    TOOLS.mkdir(exist_ok=True)
    _build("the Go client", [go, "build", "-o", str(TOOLS / name), "."], cwd=source)
    return str(TOOLS / name)


def _build(what: str, command: Sequence[str], cwd: Path = ROOT) -> None:
    try:
        subprocess.run(
            command, cwd=cwd, env=environment(), capture_output=True, text=True, check=True, timeout=BUILD_SECONDS
        )
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or error.stdout).splitlines() if line.strip()]
        raise NotInstalled(f"{what}: {lines[-1].strip() if lines else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{what}: {error}") from error
