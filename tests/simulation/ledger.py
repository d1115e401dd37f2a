"""What was seen in a run: calls, messages, runs, results. Readable when something went wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery import states

from celery_etcdlock.locking.lock import Lock
from tests.simulation.apps import TaskSpec
from tests.simulation.broker import Message
from tests.simulation.scheduler import Process

if TYPE_CHECKING:
    from tests.simulation.pool import Job
    from tests.simulation.world import World

__all__ = ["Call", "Ledger", "Run", "Sent"]


@dataclass
class Call:
    """One ``apply_async`` by a producer."""

    number: int
    spec: TaskSpec
    name: str
    producer: Process
    began: float
    ended: float | None = None
    result_id: str | None = None
    conflict: bool = False
    error: BaseException | None = None


@dataclass
class Sent:
    """One publication of a message."""

    at: float
    message: Message
    by: str
    claims: list[list[Any]]


@dataclass
class Run:
    """One run of a body."""

    task_id: str
    step: tuple[int, int]
    spec: TaskSpec
    name: str
    process: Process
    began: float
    taken_at: float
    lock: Any
    job: Job | None = None
    ended: float | None = None
    how: str = "runs"


@dataclass
class Ledger:
    world: World
    lines: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    sent: dict[str, list[Sent]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    running: list[Run] = field(default_factory=list)
    stores: dict[str, list[tuple[float, str, Any]]] = field(default_factory=dict)
    ready_at: dict[str, float] = field(default_factory=dict)
    #: Of whom nothing can be promised any more, and why.
    excused: dict[str, str] = field(default_factory=dict)
    unmarked: set[str] = field(default_factory=set)
    #: When a child first took it to start it.
    taken: dict[str, float] = field(default_factory=dict)
    #: Of whose message there is a copy with headers that nobody of us wrote.
    forged: set[str] = field(default_factory=set)
    #: Whose lock was given up early, and said so.
    forfeited: set[str] = field(default_factory=set)
    #: When a job deleted its own message's key before it entered a body, by task id: it ends, and its result follows.
    let_go: dict[str, tuple[float, Job]] = field(default_factory=dict)
    unprotected: set[str] = field(default_factory=set)
    deaths: list[tuple[float, str]] = field(default_factory=list)
    disturbed_until: float = 0.0
    locks: dict[str, list[Lock]] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    #: When a message of it expired, by task id, that its broker dropped without a word.
    dropped: dict[str, float] = field(default_factory=dict)

    def note(self, text: str) -> None:
        self.lines.append(f"{self.world.scheduler.now - 1000:8.3f}  {text}")

    def disturbed(self, seconds: float = 0.0) -> None:
        self.disturbed_until = max(self.disturbed_until, self.world.scheduler.now + seconds)

    # --- messages -------------------------------------------------------------------------------------------------

    def published(self, message: Message) -> None:
        current = self.world.scheduler.current
        claims = message.headers.get("etcdlock_claims") or []
        if message.task_id in self.forged:
            claims = []
        sent = Sent(self.world.scheduler.now, message, current.process.name if current else "?", claims)
        self.sent.setdefault(message.task_id, []).append(sent)
        shown = {key.removeprefix("etcdlock_"): value for key, value in message.headers.items() if "etcdlock" in key}
        extra = f" retries={message.headers['retries']}" if message.headers.get("retries") else ""
        eta = f" eta={message.headers['eta']}" if message.headers.get("eta") else ""
        self.note(f"{sent.by} publishes #{message.number} {message.task_id[:8]}{extra}{eta} {shown or ''}")
        self.world.properties.published(sent)

    def received(self, worker: Any, message: Message) -> None:
        mark = " (redelivered)" if message.redelivered else ""
        self.note(f"{worker.name} receives #{message.number} {message.task_id[:8]}{mark}")

    def gone(self, message: Message, why: str) -> None:
        if why == "expired":
            self.note(f"the broker drops #{message.number} {message.task_id[:8]}, which has expired")
            self.world.coverage.hit("fault", "dropped when it expired")
            self.dropped.setdefault(message.task_id, message.expires_at or 0.0)

    def stored(self, task_id: str, meta: Any) -> None:
        state = meta["status"]
        self.stores.setdefault(task_id, []).append((self.world.scheduler.now, state, meta.get("result")))
        current = self.world.scheduler.current
        shown = str(meta.get("result"))[:150]
        self.note(f"{current.process.name if current else '?'} stores {task_id[:8]} {state} {shown}")
        if state in states.READY_STATES:
            self.ready_at.setdefault(task_id, self.world.scheduler.now)
        self.world.properties.stored(task_id, state, meta.get("result"))

    def state(self, task_id: str) -> str:
        stores = self.stores.get(task_id)
        return stores[-1][1] if stores else states.PENDING
