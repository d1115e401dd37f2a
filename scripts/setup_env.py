"""Makes ``.venv``: this project, editable, with an extra and the versions of constraints.txt. Standard library only.

Run it again at will: a stamp in the environment holds a digest of all that it was made from, and as long as that is
true nothing happens. An environment that is broken, was moved, or is of another Python than the one asked for is made
anew.

``python3 -m venv`` needs ensurepip, which Debian keeps in a package of its own (python3-venv). Where only pip is
there, the environment is made without one and this Python's pip puts a pip into it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
OLDEST = (3, 10)
#: Which extras hold which: one that is installed already covers these.
COVERS = {
    "demo": ["demo"],
    "docs": ["docs"],
    "test": ["test", "demo", "docs"],
    "dev": ["dev", "test", "demo", "docs"],
}


class SetUpFailed(Exception):
    """Ends the set-up; the text says what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the project's environment.")
    parser.add_argument("extra", choices=COVERS)
    parser.add_argument("--venv", default=".venv", type=Path)
    parser.add_argument("--keep-python", action="store_true", help="take an existing environment of any Python")
    options = parser.parse_args()
    venv = (ROOT / options.venv).absolute()
    try:
        if sys.version_info < OLDEST:
            raise SetUpFailed(
                f"Python {sys.version.split()[0]} is too old, celery-etcdlock needs 3.10 to 3.15.\n"
                "Name another one: PYTHON=python3.12 make ..."
            )
        with one_at_a_time():
            set_up(venv, options.extra, keep_python=options.keep_python)
    except SetUpFailed as error:
        print(f"\nset-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two makes at once must not install into one environment."""
    with CONSTRAINTS.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def set_up(venv: Path, extra: str, *, keep_python: bool) -> None:
    python = venv / "bin" / "python"
    stamp = venv / "set-up.json"
    found = read_stamp(stamp)
    there = python_of(python)
    mine = "{}.{}.{}".format(*sys.version_info[:3])
    usable = there is not None and found.get("path", str(venv)) == str(venv) and (keep_python or there == mine)
    wanted = {"path": str(venv), "made_from": digest(), "python": there if usable else mine}
    if usable and {**found, "extras": None} == {**wanted, "extras": None} and extra in found.get("extras", []):
        return
    started = time.monotonic()
    doing = "Bringing up to date" if usable and found else "Setting up"
    say(f"{doing} {venv.name} with Python {wanted['python']}. This is done once and takes a minute or so.")
    if not usable:
        if venv.exists() and not (venv / "pyvenv.cfg").exists():
            raise SetUpFailed(f"{venv} is there and isn't a Python environment: move it away, or set VENV=...")
        shutil.rmtree(venv, ignore_errors=True)
        make_venv(venv, python)
    stamp.unlink(missing_ok=True)
    say(f"  installing celery-etcdlock[{extra}] and what it needs, pinned by constraints.txt ...")
    # Not isolated, so that the build tool too is the one of constraints.txt.
    install(python, "setuptools")
    install(python, "--no-build-isolation", "--editable", f"{ROOT}[{extra}]")
    had = found.get("extras", []) if usable and found.get("made_from") == wanted["made_from"] else []
    stamp.write_text(json.dumps({**wanted, "extras": sorted({*had, *COVERS[extra]})}))
    say(f"  set up in {time.monotonic() - started:.0f} s.")


def make_venv(venv: Path, python: Path) -> None:
    if importlib.util.find_spec("ensurepip") is not None and importlib.util.find_spec("venv") is not None:
        run([sys.executable, "-m", "venv", str(venv)], "python3 -m venv failed")
        return
    version = "{}.{}".format(*sys.version_info[:2])
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("pip") is None:
        raise SetUpFailed(
            f"this Python ({sys.executable}) can't make virtual environments.\n"
            f"On Debian or Ubuntu: sudo apt-get install python{version}-venv. Elsewhere: install Python's venv and "
            "ensurepip modules,\nor name another Python: PYTHON=python3.12 make ..."
        )
    run([sys.executable, "-m", "venv", "--without-pip", str(venv)], "python3 -m venv failed")
    packages = venv / "lib" / f"python{version}" / "site-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--target", str(packages), "pip"], "pip couldn't be put into the environment")


def install(python: Path, *what: str) -> None:
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--constraint", str(CONSTRAINTS), *what], "pip couldn't install what is needed (its words are above)")


def run(command: list[str], failure: str) -> None:
    """What pip and the build tool say (much, and of no use to who only wants a demo) is shown if they fail."""
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise SetUpFailed(f"{failure}.\nThe command was: {' '.join(command)}\nRun the same make again to go on.")


def digest() -> str:
    """Of all that decides what is installed."""
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"\0".join([*parts, Path(__file__).read_bytes()])).hexdigest()


def read_stamp(stamp: Path) -> dict[str, object]:
    try:
        found = json.loads(stamp.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def python_of(python: Path) -> str | None:
    """The version of an environment's Python, if it starts and has a pip."""
    if not python.exists():
        return None
    ask = "import platform, pip; print(platform.python_version())"
    answer = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)  # noqa: S603
    return answer.stdout.strip() if answer.returncode == 0 else None


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
