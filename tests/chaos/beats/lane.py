"""One run at a time: two beats, each with its own way to its store and its broker, and all that they send."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kombu import Connection, Consumer, Exchange, Queue

from tests.chaos.beats.ledger import Arrival
from tests.fault_proxy import FaultProxy
from tests.waiting import wait_for

SCHEDULERS = {
    "celery-etcdlock": ["-S", "celery_etcdlock.beat:EtcdScheduler"],
    "celery-redbeat": ["-S", "redbeat.RedBeatScheduler", "--max-interval", "1"],
    "celery beat, twice": [],
}


class Beat:
    """One ``celery beat`` process, behind proxies of its own."""

    def __init__(self, lane: Lane, number: int, version: str, skew_seconds: float = 0.0) -> None:
        self.log = lane.directory / f"{lane.name}-{number}.log"
        self.store_ways = [FaultProxy(port) for port in lane.store_ports]
        self.broker_way = FaultProxy(lane.broker_port)
        stores = [f"127.0.0.1:{way.port}" for way in self.store_ways]
        redbeat = lane.contender == "celery-redbeat"
        environment = {
            **os.environ,
            "BEATS_BROKER": lane.broker_url.format(port=self.broker_way.port),
            "BEATS_STORE": f"redis://{stores[0]}/0" if redbeat else ",".join(stores) or "memory://",
            "BEATS_LANE": lane.name,
            "BEATS_VERSION": version,
            "BEATS_TTL": str(lane.ttl_seconds),
            "BEATS_REDBEAT": "1" if redbeat else "",
            "BEATS_SKEW": str(skew_seconds),
        }
        command = [sys.executable, "-m", "celery", "-A", "tests.chaos.beats.app", "beat", "-l", "info", "--pidfile="]
        schedule = str(lane.directory / f"{lane.name}-{number}-schedule")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "-s", schedule, *SCHEDULERS[lane.contender]],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_started(self) -> None:
        wait_for(lambda: "beat: Starting" in self.log.read_text() or self.process.poll() is not None, "beat starts", 60)
        if self.process.poll() is not None:
            raise AssertionError(self.log.read_text())

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def end(self) -> None:
        """Politely; it is continued if it was stopped."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def cut_store(self) -> None:
        for way in self.store_ways:
            way.swallow_requests = way.swallow_replies = True

    def heal_store(self) -> None:
        for way in self.store_ways:
            way.heal()

    def cut_broker(self) -> None:
        self.broker_way.refuse = True
        self.broker_way.cut()

    def heal_broker(self) -> None:
        self.broker_way.heal()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for way in (*self.store_ways, self.broker_way):
            way.close()


class Lane:
    """See the module. ``broker_url`` has ``{port}`` in it, for each beat reaches the broker by a proxy."""

    def __init__(
        self,
        name: str,
        contender: str,
        *,
        store_ports: list[int],
        broker_url: str,
        broker_port: int,
        directory: Path,
        ttl_seconds: int = 3,
    ) -> None:
        self.name = name
        self.contender = contender
        self.store_ports = store_ports
        self.broker_url = broker_url
        self.broker_port = broker_port
        self.directory = directory
        self.ttl_seconds = ttl_seconds
        self.beats: list[Beat] = []
        self.arrivals: list[Arrival] = []
        self._at_arrival: Callable[[], object] | None = None
        self._drained = threading.Event()
        self._drainer = threading.Thread(target=self._drain, daemon=True)
        self._drainer.start()

    def start_beat(self, version: str = "1", skew_seconds: float = 0.0) -> Beat:
        beat = Beat(self, len(self.beats), version, skew_seconds)
        self.beats.append(beat)
        return beat

    def wait_for_arrival(self, entry: str, after: float, seconds: float = 60.0) -> Arrival:
        def find() -> Arrival | None:
            return next((one for one in list(self.arrivals) if one.entry == entry and one.at > after), None)

        found = wait_for(find, f"{entry} is sent", seconds)
        assert found is not None
        return found

    def at_next_arrival(self, do: Callable[[], object]) -> None:
        """``do`` is called in the thread that takes messages from the broker, right after the next one."""
        self._at_arrival = do

    def close(self) -> None:
        for beat in self.beats:
            beat.close()
        self._drained.set()
        self._drainer.join(10)

    def _drain(self) -> None:
        queue = Queue(self.name, Exchange(self.name), routing_key=self.name)

        def take(message: object) -> None:
            if self._at_arrival is not None:
                self._at_arrival()
                self._at_arrival = None
            headers = message.headers  # type: ignore[attr-defined]
            entry = headers["task"].partition(".")[2]
            self.arrivals.append(Arrival(entry, time.time(), headers["id"], headers.get("etcdlock_beat_due", "")))
            message.ack()  # type: ignore[attr-defined]

        url = self.broker_url.format(port=self.broker_port)
        with Connection(url) as connection, Consumer(connection, [queue], on_message=take, accept=["json"]):
            while not self._drained.is_set():
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.2)
