"""Runs rounds of histories on lanes of messages, and looks at what is left when all is quiet."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.client import EtcdClient
from tests.chaos.messages.checker import Finding, check, is_expiry
from tests.chaos.messages.history import READY, CallRecord, HistoryRecord, note_states, run_history
from tests.chaos.messages.lane import Clocks, MessageLane
from tests.chaos.messages.plan import GHOST_PENDING_SECONDS, LIFETIMES, UNIQUE_SECONDS, Call, make_round
from tests.chaos.runs import together
from tests.etcd_server import EtcdServer
from tests.rabbitmq_server import RabbitServer, rabbitmq_binary
from tests.redis_server import RedisServer, redis_binary

__all__ = ["LANES", "MessageRuns", "Totals", "report", "why_left_out"]

SECONDS = 5.0
QUIET_SECONDS = 20.0
PROBE_SECONDS = 45.0
#: Until the leases of marks and of keys with an end are over (docs/reliability.md), and some more.
DRAIN_SECONDS = 180.0

#: Of which kind a lane is: its broker, and whose clocks are off by how many seconds.
LANES: dict[str, tuple[str, Clocks]] = {
    "redis": ("redis", (0, 0, 0, 0)),
    "rabbitmq": ("rabbitmq", (0, 0, 0, 0)),
    "redis-clocks": ("redis", (0, 600, 0, 600)),
    "rabbitmq-clocks": ("rabbitmq", (0, -600, 0, 600)),
}


def why_left_out(lane: str) -> str | None:
    broker, clocks = LANES[lane]
    if broker == "rabbitmq" and rabbitmq_binary() is None:
        return "RabbitMQ is missing"
    if any(clocks) and find_spec("time_machine") is None:
        return "time-machine is missing (it needs Python 3.11)"
    return None


@dataclass
class Totals:
    """Of one lane. ``struck``: what was done, and how often; ``findings``: the schedule and what was wrong."""

    seeds: list[int] = field(default_factory=list)
    histories: int = 0
    calls: int = 0
    states: Counter[str] = field(default_factory=Counter)
    bodies: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


class MessageRuns:
    """The servers and the lanes. ``size``: histories at once in each lane."""

    def __init__(self, lanes: Sequence[str], directory: Path, size: int, lifetimes: Sequence[str] = LIFETIMES) -> None:
        self._lifetimes = lifetimes
        self._names = list(lanes)
        self._directory = directory
        self._size = size
        self._stops: list[Callable[[], object]] = []
        self._lanes: dict[str, MessageLane] = {}
        self.totals = {name: Totals() for name in lanes}

    def start(self) -> None:
        self._etcd = EtcdServer(fsync=False)
        self._etcd.start()
        self._stops.append(self._etcd.stop)
        redis = redis_binary()
        assert redis is not None, "redis-server is missing"
        self._redis = RedisServer(redis).start()
        self._stops.append(self._redis.stop)
        if any(LANES[name][0] == "rabbitmq" for name in self._names):
            binary = rabbitmq_binary()
            assert binary is not None
            self._rabbit = RabbitServer(binary).start()
            self._stops.append(self._rabbit.stop)
        self._client = EtcdClient([self._etcd.endpoint])
        for number, name in enumerate(self._names):
            self._lanes[name] = self._lane(name, number)
        together([lane.start for lane in self._lanes.values()])

    def _lane(self, name: str, number: int) -> MessageLane:
        broker, clocks = LANES[name]
        database = 2 * number

        def url(port: int) -> str:
            return f"redis://127.0.0.1:{port}/{database}" if broker == "redis" else f"amqp://127.0.0.1:{port}//"

        lane = MessageLane(
            f"messages-{name}",
            list(LANES).index(name),
            self._directory / f"messages-{name}",
            etcd_port=int(self._etcd.endpoint.rpartition(":")[2]),
            broker_port=self._redis.port if broker == "redis" else self._rabbit.port,
            broker_url=url,
            backend=self._redis.url(database + 1),
            marks_copies=broker == "redis",
            clocks=clocks,
        )
        self._stops.append(lane.stop)
        return lane

    def stop(self) -> None:
        with ExitStack() as stack:  # each of them, whatever another raises
            for stop in self._stops:
                stack.callback(stop)
        self._stops.clear()

    def run(self, seeds: Sequence[int], seconds: float | None = None) -> None:
        """All seeds on each lane, in step with each other no more than they must; no new one after ``seconds``."""
        ends_at = time.monotonic() + seconds if seconds is not None else float("inf")

        def on(name: str) -> Callable[[], object]:
            def each() -> None:
                for seed in seeds:
                    if time.monotonic() < ends_at:
                        self._run_round(name, seed)

            return each

        together([on(name) for name in self._names])

    # --- one round ----------------------------------------------------------------------------------------------

    def _run_round(self, name: str, seed: int) -> None:
        lane, totals = self._lanes[name], self.totals[name]
        began = time.monotonic()
        plan = make_round(
            seed, self._size, clocks_differ=lane.clocks_differ, number=lane.number, lifetimes=self._lifetimes
        )
        records: list[HistoryRecord] = []
        jobs: list[Callable[[], object]] = [
            lambda history=history: records.append(run_history(lane, history))  # type: ignore[misc]
            for history in plan.histories
        ]
        for at, what, number in plan.to_workers:
            jobs.append(lambda at=at, what=what, number=number: _later(at, lane, what, number))  # type: ignore[misc]
            totals.struck[f"worker: {what}"] += 1
        together(jobs)
        together([lambda record=record: self._look_after(lane, record) for record in records])  # type: ignore[misc]
        found = 0
        for record in sorted(records, key=lambda each: each.history.name):
            found += self._count(name, seed, record)
        totals.seeds.append(seed)
        text = f"seed {seed}: {len(records)} histories, {sum(len(each.calls) for each in records)} calls"
        print(f"messages on {name:16} {text}, {found} wrong  ({time.monotonic() - began:.0f} s)", flush=True)

    def _count(self, name: str, seed: int, record: HistoryRecord) -> int:
        totals = self.totals[name]
        totals.histories += 1
        totals.calls += len(record.calls)
        totals.struck.update(record.struck)
        for call in record.calls:
            totals.states[call.state if call.task_id is not None else "left out"] += 1
            totals.bodies += sum(event["event"] == "enter" for event in call.events)
            if call.call.strike is not None and "SoftTimeLimit" in str(call.result):
                totals.struck["soft time limit in the release"] += 1
            if call.state == "REVOKED" and is_expiry(str(call.result)):
                totals.struck["expired"] += 1
        found = check(record)
        for finding in found:
            totals.wrong[finding.what] += 1
        if found:
            text = schedule(name, seed, record, found)
            totals.findings.append(text)
            print(text, flush=True)
        return len(found)

    # --- what is left -------------------------------------------------------------------------------------------

    def _look_after(self, lane: MessageLane, record: HistoryRecord) -> None:
        kind = record.history.kind
        ends_at = time.monotonic() + QUIET_SECONDS
        while True:
            record.left = self._left(lane, record)
            if not record.left or time.monotonic() > ends_at:
                break
            time.sleep(0.3)
        if kind.ghosts:
            time.sleep(GHOST_PENDING_SECONDS)
        # To a clock that is behind, a window stands for longer, as is said in docs/reliability.md.
        if kind.lifetime != "until_expired" or not lane.clocks_differ:
            time.sleep(UNIQUE_SECONDS if kind.lifetime == "until_expired" else 0)
            self._probe(lane, record)
        # Whatever came late is counted too.
        note_states(lane, record)

    def _left(self, lane: MessageLane, record: HistoryRecord) -> list[str]:
        """Keys under the names of this lock, but for windows, and for claims of calls whose producer was killed."""
        ghosts = {call.task_id for call in record.calls if call.call.doomed}
        # Nobody meets a message that its broker dropped. Its key is nobody's when its time is over: the probe shows it.
        # Of one that was lost, it was released by hand.
        ghosts |= {call.task_id for call in record.calls if call.dropped and call.lost_at is None}
        left = []
        for name in (record.history.name, f"{record.history.name}:queued"):
            for key, value in self._keys(f"{lane.prefix}v1/{escape_name(name)}/"):
                written = json.loads(value)
                if written["kind"] != "window" and written["delivery"][0] not in ghosts:
                    left.append(f"{key} {value}")
        return left

    def _keys(self, prefix: str) -> list[tuple[str, str]]:
        request = messages.RangeRequest(key=prefix.encode(), range_end=prefix[:-1].encode() + b"0")
        answer = self._client.call("/etcdserverpb.KV/Range", request.SerializeToString(), SECONDS)
        return [(kv.key.decode(), kv.value.decode()) for kv in messages.RangeResponse.FromString(answer).kvs]

    def _probe(self, lane: MessageLane, record: HistoryRecord) -> None:
        """One more call of the same lock: it must run."""
        kind = record.history.kind
        call = Call("last", 0.0, 0, 0.05)
        producer = lane.producers[0]
        ends_at = time.monotonic() + (5.0 if not kind.ghosts else 15.0)
        while True:
            options = {"queue": lane.queues[0]}
            args = [record.history.name, call.label, call.script]
            answer = producer.ask("call", task=kind.task, args=args, options=options)
            said = answer["said"]
            if "error" not in said and not said["conflict"]:
                break
            # A reply that another history lost may keep a claim for a moment.
            if time.monotonic() > ends_at:
                record.probe = f"the call was told {said}"
                return
            time.sleep(0.5)
        ends_at = time.monotonic() + PROBE_SECONDS
        while time.monotonic() < ends_at:
            state, result = producer.ask("states", ids=[said["id"]])["said"][said["id"]]
            if state in READY:
                break
            time.sleep(0.2)
        if state != "SUCCESS":
            record.probe = f"{state} {result}"

    def drain(self) -> list[str]:
        """Stop all workers; what is under the prefixes when all leases are over. To be called once, at the end."""
        together([worker.end for lane in self._lanes.values() for worker in lane.workers])
        for lane in self._lanes.values():
            for producer in lane.producers:
                producer.kill()
        ends_at = time.monotonic() + DRAIN_SECONDS
        while True:
            left = [key for lane in self._lanes.values() for key, _ in self._keys(lane.prefix)]
            # A claim may stand for an hour, so its lease lasts for longer than anybody waits here: nothing hangs on it.
            # And that a worker was here once is there to stay.
            left = [key for key in left if "/session/" not in key and not key.endswith("/used")]
            if not left or time.monotonic() > ends_at:
                return left
            time.sleep(1)


def _later(at: float, lane: MessageLane, what: str, number: int) -> None:
    time.sleep(at)
    lane.hurt_worker(what, number)


def schedule(lane: str, seed: int, record: HistoryRecord, found: Sequence[Finding]) -> str:
    """What happened, for someone who looks for the cause."""
    history = record.history
    lines = [f"WRONG on {lane}, seed {seed}, {history.name}: {history.kind.task}"]
    lines += [f"  {finding.what}: {finding.text}" for finding in found]
    lines += [f"  {loss}" for loss in history.losses]
    lines += [f"  struck: {dict(record.struck)}"]
    moments: list[tuple[float, str]] = []
    for call in record.calls:
        lines.append(f"  {call.call}")
        lines.append(f"    id {call.task_id}, told {call.told}, {call.state} {str(call.result)[:200]}")
        moments.append((call.began, f"{call.call.label} call begins"))
        moments.append((call.ended, f"{call.call.label} call ends, {_answer(call)}"))
        if call.revoked_at is not None:
            moments.append((call.revoked_at, f"{call.call.label} is revoked"))
        for event in call.events:
            shown = {key: value for key, value in event.items() if key not in ("at", "event", "raw", "id", "name")}
            moments.append((event["at"], f"{call.call.label} {event['event']} {shown}"))
    start = min((at for at, _ in moments), default=0.0)
    lines += [f"  {at - start:7.3f} {text}" for at, text in sorted(moments)]
    return "\n".join(lines)


def _answer(call: CallRecord) -> str:
    return f"told of {call.told}" if call.told is not None else "published"


def report(totals: dict[str, Totals]) -> str:
    """Tables: how much ran on each lane and what was wrong, and how often each thing was done."""
    lines = ["| | " + " | ".join(totals) + " |", "|---" * (len(totals) + 1) + "|"]
    rows: list[tuple[str, Callable[[Totals], Any]]] = [
        ("seeds", lambda each: len(each.seeds)),
        ("histories", lambda each: each.histories),
        ("calls", lambda each: each.calls),
        ("bodies", lambda each: each.bodies),
        *[
            (state, lambda each, state=state: each.states[state])
            for state in ("SUCCESS", "REVOKED", "FAILURE", "left out")
        ],
        *[(what, lambda each, what=what: each.struck[what]) for what in sorted(_all(totals, "struck"))],
        *[(f"wrong: {what}", lambda each, what=what: each.wrong[what]) for what in sorted(_all(totals, "wrong"))],
    ]
    lines += [f"| {text} | " + " | ".join(str(of(each)) for each in totals.values()) + " |" for text, of in rows]
    return "\n".join(lines)


def _all(totals: dict[str, Totals], which: str) -> set[str]:
    return {what for each in totals.values() for what in getattr(each, which)}
