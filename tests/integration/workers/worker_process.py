"""Real Celery workers and beats for tests: subprocesses in groups of their own, ended by their handles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.waiting import wait_for

ROOT = Path(__file__).parents[3]


class CeleryProcess:
    """One ``celery`` command. ``group_kill`` ends it with all its children, as a dying host would."""

    def __init__(self, environment: dict[str, str], log_path: Path, *arguments: str) -> None:
        self.log = log_path
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", environment["TEST_MODULE"], *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_exit(self, seconds: float = 30.0) -> int:
        return self.process.wait(seconds)

    def terminate(self) -> None:
        """Warm shutdown."""
        self.process.terminate()

    def group_kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.group_kill()


class Worker(CeleryProcess):
    def __init__(self, environment: dict[str, str], directory: Path, name: str, *arguments: str) -> None:
        command = ["worker", "-n", f"{name}@test", "-l", "INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat", *arguments]
        super().__init__(environment, directory / f"{name}.log", *command)

    def wait_ready(self) -> Worker:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the worker ended:\n{self.text()[-3000:]}")
            return "ready." in self.text()

        wait_for(ready, "the worker is ready", 30)
        return self


class Beat(CeleryProcess):
    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        arguments = ["beat", "-s", str(directory / "schedule"), "--pidfile=", "-l", "INFO"]
        super().__init__(environment, directory / "beat.log", *arguments)


class Bodies:
    """What the tasks' bodies wrote down."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def entered(self) -> int:
        return sum(event["event"] == "enter" for event in self.events())

    def wait_entered(self, count: int = 1) -> list[dict[str, Any]]:
        wait_for(lambda: self.entered() >= count, f"{count} bodies have begun", 30)
        return [event for event in self.events() if event["event"] == "enter"]

    def end_all(self) -> None:
        """Let every body that runs come to its end now."""
        Path(f"{self.path}.end").touch()

    def all_ended(self) -> bool:
        return self.entered() == sum(event["event"] == "exit" for event in self.events())

    def forget(self) -> None:
        """To be called when none runs: as if there had been none, and those that begin now stay."""
        self.path.unlink(missing_ok=True)
        Path(f"{self.path}.end").unlink(missing_ok=True)

    def overlaps(self) -> list[str]:
        """Names under which two bodies were inside at once."""
        inside: dict[str, int] = defaultdict(int)
        found = []
        for event in sorted(self.events(), key=lambda event: event["at"]):
            inside[event["name"]] += 1 if event["event"] == "enter" else -1
            if inside[event["name"]] > 1:
                found.append(event["name"])
        return found

    def tokens(self, name: str) -> list[int]:
        return [event["token"] for event in self.events() if event["event"] == "enter" and event["name"] == name]


def is_gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return _no_such_process(pid)  # macOS has no /proc


def _no_such_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
