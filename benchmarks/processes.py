"""A subprocess that ends with its ``with`` block, also on Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType

from benchmarks.places import ROOT

__all__ = ["Process"]

READY_SECONDS = 60.0
END_SECONDS = 15.0


class Process:
    """Started in a session of its own, so that the terminal's Ctrl-C reaches only the benchmark, which ends it."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raises ``RuntimeError`` with the end of its log when it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{self.log_tail()}")

    def log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Raises ``RuntimeError`` when it ends, or isn't ready in time."""
        give_up_at = monotonic() + READY_SECONDS
        while not ready():
            self.check()
            if monotonic() > give_up_at:
                raise RuntimeError(f"{self.name} wasn't ready after {READY_SECONDS:g} s:\n{self.log_tail()}")
            sleep(0.02)

    def ask_to_stop(self) -> None:
        """Without waiting for it, so that several stop at the same time."""
        self._process.terminate()

    def stop(self) -> None:
        """Ask, wait, then kill."""
        self.ask_to_stop()
        try:
            self._process.wait(END_SECONDS)
        except BaseException as interruption:
            self._kill()
            if not isinstance(interruption, subprocess.TimeoutExpired):
                raise

    def _kill(self) -> None:
        """With its children: the session made a process group of them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
