"""Builds the newest etcd server of a series, 3.6 for example, out of Go's module proxy: for the version matrix.

Prints the binary's path. It is built once and kept in ``~/.cache/celery-etcdlock``; a version that came out since then
is built anew. Needs ``go``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MODULE = "go.etcd.io/etcd/server/v3"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "celery-etcdlock"
#: etcd's own main package can't be built outside its repository, because of its replace directives; this is the same.
MAIN = f"""package main

import (
	"os"

	"{MODULE}/etcdmain"
)

func main() {{ etcdmain.Main(os.Args) }}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("series", help="3.5, 3.6, 3.7 ...")
    series = parser.parse_args().series
    if shutil.which("go") is None:
        print("there is no go on PATH: install Go, or leave this etcd out", file=sys.stderr)
        return 1
    try:
        print(build(newest(series)))
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd)} failed:\n{error.stderr[-3000:]}", file=sys.stderr)
        return 1
    except LookupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def newest(series: str) -> str:
    versions = go("list", "-m", "-versions", MODULE, directory=Path(tempfile.gettempdir())).split()[1:]
    found = [version for version in versions if re.fullmatch(rf"v{re.escape(series)}\.\d+", version)]
    if not found:
        raise LookupError(f"Go's module proxy has no release of etcd {series}")
    return max(found, key=lambda version: int(version.rsplit(".", 1)[1]))


def build(version: str) -> Path:
    binary = CACHE / f"etcd-{version}"
    if binary.exists():
        return binary
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-etcd-") as folder:
        directory = Path(folder)
        (directory / "main.go").write_text(MAIN)
        go("mod", "init", "etcd", directory=directory)
        go("get", f"{MODULE}/etcdmain@{version}", directory=directory)
        built = directory / "etcd"
        go("build", "-trimpath", "-ldflags=-s -w", "-o", str(built), ".", directory=directory)
        # Whole at once, should two of us build it.
        partial = CACHE / f"{binary.name}.{os.getpid()}"
        shutil.copy2(built, partial)
        partial.replace(binary)
    return binary


def go(*arguments: str, directory: Path) -> str:
    """Without a C compiler, so that the server runs anywhere, as the released ones do."""
    command = ["go", *arguments]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GO111MODULE": "on", "GOWORK": "off"}
    done = subprocess.run(  # noqa: S603
        command, cwd=directory, env=environment, capture_output=True, text=True, check=True, timeout=1200
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
