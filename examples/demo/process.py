"""A process that we started, with its log and its end. It leads a group of its own, so that its children go too."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

POLL_SECONDS = 0.03


class DemoFailed(Exception):
    """Ends the demo. ``logs`` are those worth reading."""

    def __init__(self, text: str, *logs: Process) -> None:
        super().__init__(text)
        self.logs = logs


class Process:
    """Started at once; ``stop`` or ``kill`` it."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name, self.log = name, log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                start_new_session=True,  # away from the terminal too: a Ctrl-C is for the demo, which stops the rest
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def ask_to_end(self) -> None:
        """SIGTERM to the leader, which ends its children itself."""
        if self.alive:
            self._popen.terminate()

    def stop(self, seconds: float) -> None:
        """Wait for an end that was asked for, and force it after so long."""
        self.ask_to_end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)
        self.kill()

    def kill(self) -> None:
        """kill -9 of the whole group. Nothing of it runs any more when this returns."""
        # The group outlives its leader, and its number isn't used again while it does.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def tail(self, lines: int = 15) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def wait_until(probe: Callable[[], bool], seconds: float, what: str, *needed: Process) -> None:
    """Wait for ``probe``. Raises `DemoFailed` when it takes longer, or one of the ``needed`` processes ends."""
    deadline = time.monotonic() + seconds
    while not probe():
        for process in needed:
            if not process.alive:
                raise DemoFailed(f"{process.name} ended while the demo waited for {what}", process)
        if time.monotonic() > deadline:
            raise DemoFailed(f"gave up after {seconds:g} s: {what}", *needed)
        time.sleep(POLL_SECONDS)
