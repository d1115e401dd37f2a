"""The folder of ``celery etcdlock dev``: whose data are in it, and which etcd uses it now.

A note in it has the version of etcd that wrote the data. etcd reads only data of its own series or the one before; with
others it may panic, or say nothing. The etcd inherits the note's file lock, so the lock lasts as long as the etcd, even
if the command was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from celery_etcdlock.cli.dev_binary import Binary
from celery_etcdlock.cli.one_line import CannotStart

NOTE = "etcdlock-dev.json"


class DevFolder(contextlib.AbstractContextManager["DevFolder"]):
    """Open and locked. Raises ``CannotStart`` where it can't be used."""

    def __init__(self, path: Path, binary: Binary) -> None:
        self.path = path
        self.log_path = path / "etcd.log"
        try:
            #: The descriptor of the note, which etcd inherits.
            self.lock = self._open()
        except OSError as error:
            raise CannotStart(
                f"the folder {path} can't be used ({error.strerror or error}): name one that you may write to, "
                "with --data FOLDER"
            ) from None
        try:
            self._lock(self._read())
            self._check(self._read(), binary)
        except BaseException:
            os.close(self.lock)
            raise

    def __exit__(self, *_: object) -> None:
        os.close(self.lock)

    def write(self, binary: Binary, endpoint: str, pid: int) -> None:
        """Note whose data these are from now on."""
        note = {"etcd": binary.version, "endpoint": endpoint, "pid": pid}
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, json.dumps(note).encode(), 0)

    def _open(self) -> int:
        is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        if is_new:
            (self.path / ".gitignore").write_text("*\n")  # kept out of the project's repository
        elif not (self.path / NOTE).exists() and any(self.path.iterdir()):
            raise CannotStart(
                f"the folder {self.path} has files that `etcdlock dev` didn't put there: name a new or an empty one, "
                "with --data FOLDER"
            )
        self.log_path.touch()
        return os.open(self.path / NOTE, os.O_RDWR | os.O_CREAT, 0o644)

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            note = json.loads(os.pread(self.lock, 10_000, 0) or b"{}")
            if isinstance(note, dict):
                return note
        return {}

    def _lock(self, note: dict[str, Any]) -> None:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CannotStart(
                f"an etcd runs in {self.path} already, at {note.get('endpoint', 'a port not noted yet')}: use that, "
                f"end it (kill {note.get('pid', 'PID')}), or name another folder with --data FOLDER"
            ) from None

    def _check(self, note: dict[str, Any], binary: Binary) -> None:
        if "etcd" not in note:
            return
        before = Binary("", str(note["etcd"]))
        major, minor = binary.series
        if before.series not in ((major, minor), (major, minor - 1)):
            raise CannotStart(
                f"the data in {self.path} are of etcd {before.version}, which etcd {binary.version} ({binary.path}) "
                f"can't read: remove the folder (its locks are gone then), name another with --data FOLDER, or an etcd "
                f"{before.series[0]}.{before.series[1]} with ETCD_BIN"
            )
