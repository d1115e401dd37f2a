"""Runs one history of a lane: makes its calls, does to their messages what the plan says, and waits for their ends."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.messages.lane import MessageLane
from tests.chaos.messages.lossy import LossyProxy, Rule
from tests.chaos.messages.plan import Call, History
from tests.chaos.messages.record import Event

__all__ = ["CallRecord", "HistoryRecord", "note_states", "run_history"]

END_SECONDS = 75.0
#: After the last message has ended: copies that are still in a queue come to their end too.
SETTLE_SECONDS = 2.0
#: So long after whatever happened last, a message that nobody met has been dropped.
DROPPED_SECONDS = 3.0
#: Redis hands a message to a worker at once; so near to it, a cut connection may have been the one that it went to.
HANDED_SECONDS = 2.0
READY = ("SUCCESS", "FAILURE", "REVOKED")


@dataclass
class CallRecord:
    """A call, what its producer was told, and what became of its message. Times are of ``CLOCK_MONOTONIC``."""

    call: Call
    began: float
    ended: float
    #: The id of its own message; of a call that wasn't published none.
    task_id: str | None
    #: Whose result it was given, or who was in its way.
    told: str | None = None
    raised: bool = False
    error: str | None = None
    state: str = "PENDING"
    result: Any = None
    #: Times of what was done to it.
    revoked_at: float | None = None
    terminated: bool = False
    dropped: bool = False
    #: When it was seen that its broker had lost it. Its lock was released by hand then.
    lost_at: float | None = None
    events: list[Event] = field(default_factory=list)


@dataclass
class HistoryRecord:
    history: History
    calls: list[CallRecord] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)
    #: Keys under the lock's names once all was quiet, and what a last call came to.
    left: list[str] = field(default_factory=list)
    #: When anybody in its lane warned of etcd.
    troubles: list[float] = field(default_factory=list)
    probe: str | None = None


class _Run:
    def __init__(self, lane: MessageLane, history: History) -> None:
        self._lane = lane
        self._history = history
        self._record = HistoryRecord(history)
        self._mutex = threading.Lock()
        self._stopped = False
        self._broken: BaseException | None = None

    def run(self) -> HistoryRecord:
        self._arm()
        began = time.monotonic()
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        for call in self._history.calls:
            time.sleep(max(0.0, began + call.at - time.monotonic()))
            self._make(call)
        self._await_ends()
        time.sleep(SETTLE_SECONDS)
        self._stopped = True
        watcher.join()
        if self._broken is not None:
            raise self._broken
        for proxy in self._proxies():
            proxy.disarm(self._history.name)
        return self._record

    # --- losses -------------------------------------------------------------------------------------------------

    def _proxies(self) -> list[LossyProxy]:
        lane = self._lane
        return [*(each.etcd for each in lane.producers), *(each.etcd for each in lane.workers)]

    def _arm(self) -> None:
        for loss in self._history.losses:
            struck = Rule(
                self._history.name,
                loss.what,
                loss.seconds,
                lambda loss=loss: self._count(f"reply lost: {loss.who}, {loss.what}"),  # type: ignore[misc]
            )
            for each in self._lane.producers if loss.who == "producer" else self._lane.workers:
                each.etcd.arm(struck)

    def _count(self, what: str) -> None:
        with self._mutex:
            self._record.struck[what] += 1

    # --- calls --------------------------------------------------------------------------------------------------

    def _make(self, call: Call) -> None:
        options: dict[str, Any] = {"queue": self._lane.queues[(self._history.queue + int(call.label[1:])) % 2]}
        if call.countdown:
            options["countdown"] = call.countdown
        if call.expires is not None:
            options["expires"] = call.countdown + call.expires
        own_id = uuid.uuid4().hex if call.promised or call.doomed else None
        if own_id:
            options["task_id"] = own_id
        command = {"task": self._history.kind.task, "args": [self._history.name, call.label, call.script]}
        if call.doomed:
            self._doom(call, own_id, {**command, "options": options})
            return
        answer = self._lane.producers[call.producer].ask("call", **command, options=options)
        said = answer["said"]
        record = CallRecord(call, answer["began"], answer["ended"], None, error=said.get("error"))
        if said.get("conflict"):
            record.told, record.raised = said["id"], said["raised"]
        else:
            record.task_id = said.get("id")
        with self._mutex:
            self._record.calls.append(record)

    def _doom(self, call: Call, own_id: str | None, command: dict[str, Any]) -> None:
        producer = self._lane.doomed_producer()
        producer.start()
        began = self._lane.now()
        try:
            producer.send("call", **command)
            producer.await_death()
        finally:
            producer.kill()
        self._count("producer killed")
        with self._mutex:
            self._record.calls.append(CallRecord(call, began, self._lane.now(), own_id))

    # --- what is done to messages ---------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            self._watch_all()
        except BaseException as error:
            self._broken = error

    def _watch_all(self) -> None:
        done: set[tuple[str, int]] = set()
        while not self._stopped:
            self._lane.log.read()
            with self._mutex:
                records = list(self._record.calls)
            for record in records:
                if record.task_id is None or record.call.doomed:
                    continue
                self._watch_one(record, done)
            time.sleep(0.02)

    def _watch_one(self, record: CallRecord, done: set[tuple[str, int]]) -> None:
        assert record.task_id is not None
        events = self._lane.log.of(record.task_id)
        for number, (moment, marked) in enumerate(record.call.copies):
            message = _message_at(moment, events)
            if message is not None and (record.task_id, number) not in done:
                done.add((record.task_id, number))
                self._lane.deliver_again(message, marked=marked)
                self._count(f"copy: {moment}")
        if record.lost_at is None and _is_lost(self._lane, events):
            record.lost_at = self._lane.now()
            self._lane.release(record.task_id)
            self._count("lost by Redis")
        revoked = record.call.revoked
        if revoked is not None and record.revoked_at is None and _message_at(revoked[0], events) is not None:
            record.revoked_at = self._lane.now()
            record.terminated = revoked[1]
            self._lane.producers[0].ask("revoke", task_id=record.task_id, terminate=revoked[1])
            self._count(f"revoke: {revoked[0]}{', terminate' if revoked[1] else ''}")

    # --- ends ---------------------------------------------------------------------------------------------------

    def _await_ends(self) -> None:
        ends_at = time.monotonic() + END_SECONDS
        waits = [each for each in self._record.calls if each.task_id is not None and not each.call.doomed]
        ids = [each.task_id for each in waits]
        states: dict[str, Any] = {}
        while time.monotonic() < ends_at:
            states = self._lane.producers[0].ask("states", ids=ids)["said"]
            if all(states[each.task_id][0] in READY or _never_comes(self._lane, each) for each in waits):
                break
            time.sleep(0.3)
        note_states(self._lane, self._record)


def _is_dropped(lane: MessageLane, record: CallRecord) -> bool:
    """Whether the broker dropped the message since it expired in its queue. No result says so: Celery never saw it.

    It is in its queue when nobody has met it since it was published, or when a worker's connection was cut that hadn't
    acknowledged it. Of that one Celery stores RETRY, because its broker is going to deliver it again.
    """
    call, events = record.call, lane.log.of(record.task_id or "")
    if not lane.drops_expired or call.expires is None or not events:
        return False
    last = max([record.ended + call.countdown + call.expires, *(event["at"] for event in events)])
    if lane.now() < last + DROPPED_SECONDS:
        return False
    return events[-1]["event"] == "published" or any(record.began < at for at in lane.hurt_at)


def _is_lost(lane: MessageLane, events: list[Event]) -> bool:
    """Whether Redis lost the message: kombu pops it before its worker has it, whose connection was cut (kombu 1733)."""
    if lane.drops_expired or not events or events[-1]["event"] != "published":
        return False
    published = events[-1]["at"]
    if lane.now() < published + DROPPED_SECONDS or not any(abs(at - published) < HANDED_SECONDS for at in lane.cut_at):
        return False
    return not lane.redis_has(events[-1]["id"])


def _never_comes(lane: MessageLane, record: CallRecord) -> bool:
    return record.lost_at is not None or _is_dropped(lane, record)


def note_states(lane: MessageLane, record: HistoryRecord) -> None:
    """What each message came to, by now."""
    ids = [each.task_id for each in record.calls if each.task_id is not None]
    states = lane.producers[0].ask("states", ids=ids)["said"]
    lane.log.read()
    record.troubles = sorted(lane.log.troubles)
    for each in record.calls:
        if each.task_id is not None:
            each.state, each.result = states[each.task_id]
            each.events = lane.log.of(each.task_id)
            each.dropped = _never_comes(lane, each)


def run_history(lane: MessageLane, history: History) -> HistoryRecord:
    return _Run(lane, history).run()


def _message_at(moment: str, events: list[Event]) -> Event | None:
    """The message to be delivered again at this moment, if the moment is there."""
    published = [event for event in events if event["event"] == "published"]
    if not published:
        return None
    first, last = published[0], published[-1]
    if moment == "queued":
        return first
    if moment == "parked":
        return last if last["comebacks"] else None
    entered = [event for event in events if event["event"] == "enter"]
    ended = [event for event in events if event["event"] == "exit" and event["completed"]]
    if moment == "running":
        return _of_run(published, entered[-1]) if len(entered) > len(ended) else None
    if moment == "ran":
        return _of_run(published, ended[-1]) if ended else None
    return next((event for event in published if event["retries"] or event["replaced"]), None)


def _of_run(published: list[Event], body: Event) -> Event:
    """The message of that run, as it was sent at first."""
    same = [
        event for event in published if (event["retries"], event["replaced"]) == (body["retries"], body["replaced"])
    ]
    return same[0] if same else published[0]
