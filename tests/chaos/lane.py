"""A lane: one lock, two workers that compete for it, and a pump that sends them tasks.

Each worker has a way to the store of its own, so that one can be cut off while the other isn't. Workers that a fault
killed are started again before the next run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.chaos.contenders import ROOT, Contender
from tests.chaos.ways import Way
from tests.waiting import wait_for

START_SECONDS = 60.0
#: Redis gives a message that nobody acknowledged to another worker after so long.
VISIBILITY_SECONDS = 15


class Site:
    """One worker and its way to the store."""

    def __init__(self, lane: Lane, number: int) -> None:
        self._lane = lane
        self._number = number
        self.way = lane.new_way()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = lane.directory / f"worker{number}.log"
        self._starts = 0

    def start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self._starts += 1
        offset = self.log.stat().st_size if self.log.exists() else 0
        command = [
            *self.way.enter,
            self._lane.python,
            "-m",
            "celery",
            "-A",
            self._lane.app,
            "worker",
            "-c",
            "2",
            "-l",
            "INFO",
        ]
        command += ["-n", f"{self._lane.name}-{self._number}-{self._starts}@chaos"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        store = self._lane.store_at(self.way.endpoints)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**self._lane.environment, "CHAOS_STORE": store},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def ready() -> bool:
            with self.log.open("rb") as log:
                log.seek(offset)
                text = log.read()
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"a worker ended:\n{text.decode(errors='replace')[-3000:]}")
            return b"ready." in text

        wait_for(ready, "a worker is ready", START_SECONDS)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.way.close()


class Lane:
    """See the module. ``endpoints`` are the store's own, ``new_way`` makes one for each worker."""

    def __init__(
        self,
        contender: Contender,
        name: str,
        directory: Path,
        broker: str,
        endpoints: list[str],
        new_way: Callable[[], Way],
        ttl_seconds: int,
        number: int,
    ) -> None:
        self.contender = contender
        self.name = name
        self.directory = directory
        self.new_way = new_way
        self.number = number
        self.ttl_seconds = ttl_seconds
        self.python = contender.python()
        self.app = f"tests.chaos.apps.{contender.app}"
        self._log = directory / "events"
        directory.mkdir(parents=True)
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("ETCD", "CELERY"))},
            **contender.environment(),
            "PYTHONPATH": str(ROOT),
            "CHAOS_LANE": name,
            "CHAOS_BROKER": broker,
            "CHAOS_STORE": self.store_at(endpoints),
            "CHAOS_TTL": str(ttl_seconds),
            "CHAOS_LOG": str(self._log),
            "CHAOS_REGISTER": str(directory / "register.db"),
            "CHAOS_VISIBILITY_TIMEOUT": str(VISIBILITY_SECONDS),
        }
        self.sites = [Site(self, number) for number in range(2)]
        self.kept: list[str] = []
        self._pump: subprocess.Popen[str] | None = None

    def store_at(self, endpoints: list[str]) -> str:
        addresses = ",".join(endpoints)
        return addresses if self.contender.store == "etcd" else f"redis://{addresses}/{self.number}"

    def start(self) -> None:
        with (self.directory / "pump.log").open("ab") as log:
            self._pump = subprocess.Popen(
                [self.python, "-m", "tests.chaos.pump", self.app],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
        self._answer()
        for site in self.sites:
            site.start()

    def stop(self) -> None:
        if self._pump is not None:
            self._pump.kill()
            self._pump.communicate()
        for site in self.sites:
            site.stop()

    # --- the pump -------------------------------------------------------------------------------------------

    def tell_pump(self, command: str) -> str:
        assert self._pump is not None
        assert self._pump.stdin is not None
        self._pump.stdin.write(command + "\n")
        return self._answer()

    def _answer(self) -> str:
        assert self._pump is not None
        assert self._pump.stdout is not None
        line = self._pump.stdout.readline().strip()
        if not line:
            raise AssertionError(f"the pump ended:\n{(self.directory / 'pump.log').read_text()[-2000:]}")
        return line

    def keep(self, seconds: float) -> str:
        ident = self.tell_pump(f"keep {seconds}")
        self.kept.append(ident)
        return ident

    # --- the record -----------------------------------------------------------------------------------------

    def events(self) -> list[dict[str, Any]]:
        if not self._log.exists():
            return []
        events = [json.loads(line) for line in self._log.read_text().splitlines()]
        return sorted(events, key=lambda event: event["at"])

    def note(self, event: str, pid: int) -> None:
        line = json.dumps({"at": time.monotonic(), "event": event, "pid": pid}) + "\n"
        with self._log.open("ab", buffering=0) as log:
            log.write(line.encode())

    def holder(self) -> dict[str, Any] | None:
        """The entrance of the body that is inside now, if there is one; not those whose process was killed."""
        events = self.events()
        over = {event["entrance"] for event in events if event["event"] == "exit"}
        killed = {event["pid"] for event in events if event["event"] == "killed"}
        inside = [
            event
            for event in events
            if event["event"] == "enter" and event["entrance"] not in over and event["pid"] not in killed
        ]
        return inside[-1] if inside else None

    def site_of(self, holder: dict[str, Any]) -> Site:
        """The worker of that body; either, if its MainProcess is gone."""
        return next((site for site in self.sites if site.process and site.pid == holder["parent"]), self.sites[0])

    def completed(self) -> set[str]:
        return {event["task"] for event in self.events() if event["event"] == "exit" and event["completed"]}

    # --- signals --------------------------------------------------------------------------------------------

    def kill(self, *pids: int) -> None:
        """Kill, and note it once they can do nothing more."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            wait_for(lambda pid=pid: _is_gone(pid), "a killed process is gone", 10)  # type: ignore[misc]
            self.note("killed", pid)

    def note_death(self, *pids: int) -> None:
        """Note processes that die with their parent, as a pool's do on Linux; those that live on, don't."""
        for pid in pids:
            ends_at = time.monotonic() + 0.5
            while not _is_gone(pid) and time.monotonic() < ends_at:
                time.sleep(0.002)
            if _is_gone(pid):
                self.note("killed", pid)

    def pause(self, *pids: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self.note("stopped", pid)

    def resume(self, *pids: int) -> None:
        for pid in pids:
            # Noted first: what it does from now on is no stopped process's doing.
            self.note("continued", pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True
