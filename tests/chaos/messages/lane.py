"""A lane of messages: a broker, two workers and two producers, each behind proxies of its own, one etcd for all lanes.

Where ``clocks`` differ, the second worker's and the second producer's wall clocks are off, and only those: trust is
measured on clocks that nobody sets. There each worker has a queue of its own, for Celery's own ETAs are by wall clock.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kombu import Connection
from redis import Redis

from tests.chaos.contenders import ROOT
from tests.chaos.messages.lossy import LossyProxy
from tests.chaos.messages.record import Event, EventLog
from tests.fault_proxy import FaultProxy
from tests.waiting import wait_for

__all__ = ["Clocks", "MessageLane"]

START_SECONDS = 90.0
ANSWER_SECONDS = 60.0
STOP_SECONDS = 60.0
#: Seconds that the wall clocks of (first worker, second worker, first producer, second producer) are off.
Clocks = tuple[int, int, int, int]
OFF_CLOCK = ROOT / "tests" / "chaos" / "messages" / "off_clock"


def _clock(seconds: int) -> dict[str, str]:
    return {"CHAOS_CLOCK": str(seconds), "PYTHONPATH": f"{OFF_CLOCK}{os.pathsep}{ROOT}"} if seconds else {}


class Worker:
    """One worker, which can be restarted and cut off."""

    def __init__(self, lane: MessageLane, number: int, environment: dict[str, str]) -> None:
        self.etcd = LossyProxy(lane.etcd_port)
        self.broker = FaultProxy(lane.broker_port)
        self.log = lane.directory / f"worker{number}.log"
        self._name = f"{lane.name}-{number}"
        self._environment = {
            **environment,
            "CHAOS_STORE": self.etcd.endpoint,
            "CHAOS_BROKER": lane.broker_url(self.broker.port),
        }
        self._starts = 0
        #: So that nobody restarts it while all is stopped.
        self._ended = False
        # The second one's children end after a few tasks.
        self._options = ["--max-tasks-per-child", "7"] if number else []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._ended:
            return
        self._starts += 1
        offset = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-m", "celery", "-A", "tests.chaos.messages.app", "worker", "-c", "4", "-l", "INFO"]
        command += ["-n", f"{self._name}-{self._starts}@chaos", *self._options]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def ready() -> bool:
            text = self.log.read_bytes()[offset:]
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"a worker ended:\n{text.decode(errors='replace')[-3000:]}")
            return b"ready." in text

        wait_for(ready, "a worker is ready", START_SECONDS)

    def end(self) -> None:
        """Warm: what runs comes to its end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        self._ended = True
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.etcd.close()
        self.broker.close()


class Producer:
    """One process that makes calls."""

    def __init__(self, lane: MessageLane, environment: dict[str, str], log: Path) -> None:
        self.etcd = LossyProxy(lane.etcd_port)
        self._environment = {**environment, "CHAOS_STORE": self.etcd.endpoint}
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._changed = threading.Condition()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.messages.producer"],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise AssertionError(f"a producer ended:\n{self._log.read_text()[-2000:]}")
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            with self._changed:
                self._answers[answer["n"]] = answer
                self._changed.notify_all()

    def ask(self, do: str, seconds: float = ANSWER_SECONDS, **command: Any) -> dict[str, Any]:
        """``began`` and ``ended`` by the producer, and what it ``said``."""
        assert self._process is not None
        assert self._process.stdin is not None
        with self._changed:
            self._number += 1
            number = self._number
            self._process.stdin.write(json.dumps({"n": number, "do": do, **command}) + "\n")
            if not self._changed.wait_for(lambda: number in self._answers, seconds):
                raise AssertionError(f"a producer doesn't answer: {do} {command}")
            return self._answers.pop(number)

    def await_death(self) -> None:
        """Of one that is doomed."""
        assert self._process is not None
        self._process.wait(ANSWER_SECONDS)

    def send(self, do: str, **command: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"n": 0, "do": do, **command}) + "\n")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.etcd.close()


class MessageLane:
    """See the module. ``broker_url`` makes the broker's address of a port, since each worker has a proxy before it."""

    def __init__(
        self,
        name: str,
        number: int,
        directory: Path,
        *,
        etcd_port: int,
        broker_port: int,
        broker_url: Callable[[int], str],
        backend: str,
        marks_copies: bool,
        clocks: Clocks = (0, 0, 0, 0),
    ) -> None:
        self.name = name
        self.number = number
        self.directory = directory
        self.etcd_port = etcd_port
        self.broker_port = broker_port
        self.broker_url = broker_url
        #: Whether a copy can say that it is one; RabbitMQ says so by itself.
        self.marks_copies = marks_copies
        #: And it drops messages that expire in a queue, without a word: no worker meets them.
        self.drops_expired = not marks_copies
        #: When a worker lost its broker, or was ended: what it hadn't acknowledged is back in its queue.
        self.hurt_at: list[float] = []
        #: When its connections were cut.
        self.cut_at: list[float] = []
        self.clocks_differ = any(clocks)
        directory.mkdir(parents=True)
        self.log = EventLog(directory / "events")
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("ETCD", "CELERY"))},
            "PYTHONPATH": str(ROOT),
            "CHAOS_LANE": name,
            "CHAOS_BROKER": broker_url(broker_port),
            "CHAOS_BACKEND": backend,
            "CHAOS_LOG": str(directory / "events"),
        }
        self._environment = {**environment, "CHAOS_QUEUE": self.queues[0]}
        self.workers = [
            Worker(self, index, {**environment, "CHAOS_QUEUE": self.queues[index], **_clock(clocks[index])})
            for index in range(2)
        ]
        self.producers = [
            Producer(self, {**self._environment, **_clock(clocks[2 + index])}, directory / f"producer{index}.log")
            for index in range(2)
        ]

    @property
    def prefix(self) -> str:
        return f"/celery-etcdlock/{self.name}/"

    @property
    def queues(self) -> tuple[str, str]:
        return (f"{self.name}-0", f"{self.name}-1") if self.clocks_differ else (self.name, self.name)

    def doomed_producer(self) -> Producer:
        environment = {**self._environment, "CHAOS_DOOMED": "1"}
        return Producer(self, environment, self.directory / "doomed.log")

    def start(self) -> None:
        for producer in self.producers:
            producer.start()
        for worker in self.workers:
            worker.start()

    def stop(self) -> None:
        for producer in self.producers:
            producer.kill()
        for worker in self.workers:
            worker.kill()

    def deliver_again(self, published: Event, *, marked: bool) -> None:
        """What a broker does: the same message, byte by byte."""
        body, content_type, encoding, headers, properties, routing_key, exchange = pickle.loads(
            b64decode(published["raw"])
        )
        if marked and self.marks_copies:
            properties["delivery_info"] = {"redelivered": True}
        if "expiration" in properties:
            properties["expiration"] = int(properties["expiration"]) / 1000
        with Connection(self.broker_url(self.broker_port)) as connection:
            connection.Producer().publish(
                body,
                content_type=content_type,
                content_encoding=encoding,
                headers=headers,
                routing_key=routing_key,
                exchange=exchange,
                **properties,
            )

    def hurt_worker(self, what: str, number: int) -> None:
        self.hurt_at.append(self.now())
        worker = self.workers[number]
        if what == "broker cut":
            self.cut_at.append(self.now())
            worker.broker.cut()
        else:
            worker.end()
            worker.start()

    def redis_has(self, task_id: str) -> bool:
        """Whether a message of this id is in a queue, or with a worker that hasn't acknowledged it."""
        with Redis.from_url(self.broker_url(self.broker_port)) as redis:
            messages = [*redis.hvals("unacked")]
            for key in redis.scan_iter(_type="list"):
                messages += redis.lrange(key, 0, -1)
        return any(task_id.encode() in message for message in messages)

    def release(self, task_id: str) -> None:
        """What docs/troubleshooting.md tells people to do about the lock of a message that was lost."""
        command = [sys.executable, "-m", "celery", "-A", "tests.chaos.messages.app"]
        command += ["etcdlock", "release", task_id, "--force", "--yes"]
        environment = {**self._environment, "CHAOS_STORE": f"127.0.0.1:{self.etcd_port}"}
        with (self.directory / "release.log").open("ab") as log:
            # Of one that had no lock, none is found.
            subprocess.run(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=ANSWER_SECONDS, check=False
            )

    @staticmethod
    def now() -> float:
        return time.clock_gettime(time.CLOCK_MONOTONIC)
