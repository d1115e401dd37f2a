"""What happens in one run: drawn from a seed, readable, and made smaller by leaving out actions."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from tests.simulation.apps import TaskSpec

__all__ = ["Action", "Config", "Plan", "make_plan"]

#: Calls and faults happen in so many seconds; then everything heals.
BUSY_SECONDS = 45.0


@dataclass(frozen=True)
class Config:
    """The deployment. Times in seconds."""

    broker: str = "redis"
    visibility: float = 120.0
    workers: int = 2
    slots: int = 1
    prefetch: int = 4
    producers: int = 2
    gate: bool = True
    on_unavailable: str = "retry"
    timeout: float = 1.0
    ttl: int = 4
    done_ttl: float = 600.0
    max_tasks_per_child: int | None = None
    #: Of each host's wall clock: workers first, then producers.
    offsets: tuple[float, ...] = (0.0,) * 8
    duplicate: float = 0.0
    delay: float = 0.0
    lose_reply: float = 0.0
    mutex_switches: float = 0.02


@dataclass(frozen=True)
class Action:
    at: float
    kind: str
    what: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.at:7.2f}  {self.kind} " + " ".join(map(str, self.what))


@dataclass(frozen=True)
class Plan:
    seed: int
    config: Config
    specs: list[TaskSpec]
    actions: list[Action] = field(default_factory=list)

    def with_actions(self, actions: list[Action]) -> Plan:
        return replace(self, actions=actions)

    def __str__(self) -> str:
        default = Config()
        config = {
            name: value for name, value in vars(self.config).items() if value != getattr(default, name) or name == "broker"
        }
        lines = [f"seed {self.seed}: {config}"]
        lines += [f"  task {number}: {spec}" for number, spec in enumerate(self.specs)]
        lines += [f"  {action}" for action in self.actions]
        return "\n".join(lines)


LIFETIMES = ("while_executing", "until_executing", "until_executed", "until_and_while_executing", "until_expired")
AT_ENQUEUE = ("skip", "raise", "join", "replace")
AT_RUN = ("skip", "raise", "retry", "wait", "join", "replace")


def make_spec(chance: random.Random) -> TaskSpec:
    lock = chance.choice((*LIFETIMES, "until_executed", "until_executed"))
    enqueue = run = None
    if lock == "while_executing":
        run = chance.choice(AT_RUN)
    elif lock == "until_executing":
        enqueue = chance.choice(("skip", "raise", "join", "replace"))
    elif lock == "until_expired":
        enqueue = chance.choice(("skip", "raise", "join", "retry", "wait"))
    else:
        enqueue = run = chance.choice(AT_RUN)
        if chance.random() < 0.5:
            enqueue = chance.choice(AT_ENQUEUE)
    limit = chance.choice((1, 1, 1, 1, 2))
    if lock == "until_expired" or "replace" in (enqueue, run):
        limit = 1
    late = chance.random() < 0.5
    return TaskSpec(
        lock=lock,
        enqueue=enqueue,
        run=run,
        limit=limit,
        hold=chance.choice((0.0, 0.0, 0.0, 3.0)) if lock != "until_expired" and lock != "until_executing" else 0.0,
        late=late,
        requeue_lost=late and chance.random() < 0.5,
        pending_ttl=chance.choice((40.0, 200.0, 200.0)) if lock not in ("while_executing", "until_expired") else None,
        unique_for=chance.choice((10.0, 25.0)) if lock == "until_expired" else None,
        wait_timeout=chance.choice((8.0, 20.0)),
        on_lost=chance.choice(("raise", "raise", "flag")),
        soft=chance.choice((None, None, 1.0, 3.0)),
        hard=chance.choice((None, None, None, 5.0)),
    )


def make_script(chance: random.Random) -> dict[str, Any]:
    ends = [chance.choice(("ok", "ok", "ok", "fail"))]
    if chance.random() < 0.45:
        ends = [chance.choice(("retry", "retry", "replace", "retry_quietly"))] * chance.choice((1, 1, 2)) + ends
    return {
        "ends": ends,
        "work": [round(chance.choice((0.02, 0.3, 2.0, 6.0)) * chance.random(), 3) for _ in ends],
        "countdown": chance.choice((0, 0, 1, 4, 9)),
        "after": chance.choice((0.0, 0.0, 0.0, 0.7)),
    }


def make_plan(seed: int) -> Plan:
    chance = random.Random(f"plan {seed}")
    skewed = chance.random() < 0.35
    workers, producers = chance.choice((1, 2, 2)), chance.choice((1, 2, 3))
    offsets = [round(chance.choice((-1, 1)) * 600 * chance.random(), 1) if skewed else 0.0 for _ in range(8)]
    config = Config(
        broker=chance.choice(("redis", "amqp")),
        visibility=chance.choice((30.0, 120.0)),
        workers=workers,
        slots=chance.choice((1, 1, 2)),
        prefetch=chance.choice((1, 4)),
        producers=producers,
        gate=chance.random() < 0.5,
        on_unavailable=chance.choice(("retry", "retry", "retry", "raise", "run")),
        timeout=1.0,
        ttl=chance.choice((2, 4, 8)),
        max_tasks_per_child=chance.choice((None, None, None, 2)),
        offsets=tuple(offsets),
        duplicate=chance.choice((0.0, 0.0, 0.2)),
        delay=chance.choice((0.0, 0.0, 1.0)),
        lose_reply=chance.choice((0.0, 0.0, 0.02, 0.1)),
        mutex_switches=chance.choice((0.0, 0.1)),
    )
    specs = [make_spec(chance) for _ in range(chance.choice((1, 1, 2)))]
    actions: list[Action] = []
    calls = chance.randrange(3, 12)
    clumps = [BUSY_SECONDS * 0.8 * chance.random() for _ in range(chance.randrange(1, 5))]
    for number in range(calls):
        at = chance.choice(clumps) + chance.choice((0.0, 0.5, 5.0)) * chance.random()
        options: dict[str, Any] = {}
        if chance.random() < 0.15:
            options["countdown"] = chance.choice((1, 5))
        if chance.random() < 0.15:
            options["expires"] = chance.choice((1, 6, 15))
        if chance.random() < 0.08:
            options["task_id"] = f"own-{number}"
        name = chance.choice("AAAB")
        actions.append(
            Action(
                at,
                "call",
                (number, chance.randrange(producers), chance.randrange(len(specs)), name, make_script(chance), options),
            )
        )
        if chance.random() < 0.12:
            actions.append(Action(at + 8 * chance.random(), "revoke", (number, chance.random() < 0.3)))
        if chance.random() < 0.2:
            actions.append(Action(at + chance.choice((0.2, 2.0, 10.0)) * chance.random(), "copy", (number,)))
    for _ in range(chance.choice((0, 1, 2, 3, 5))):
        at = BUSY_SECONDS * chance.random() if chance.random() < 0.3 else chance.choice(clumps) + 4 * chance.random()
        actions.append(_fault(chance, at, workers, producers))
    return Plan(seed, config, specs, sorted(actions, key=lambda action: action.at))


def _fault(chance: random.Random, at: float, workers: int, producers: int) -> Action:
    who = chance.choice(
        [f"worker{number}" for number in range(workers)] * 2
        + [f"producer{number}" for number in range(producers)] * 2
        + ["runner", "runner", "all"]
    )
    worker = f"worker{chance.randrange(workers)}"
    seconds = round(chance.choice((0.5, 1.6, 3.0, 10.0)) * (0.5 + chance.random()), 2)
    kind = chance.choice(
        ("deaf", "deaf", "deaf", "cut", "refused", "flaky", "flaky", "late", "freeze", "kill child", "kill child")
        + ("kill worker", "stop producer", "leader", "compact", "broker down", "connection lost", "slow")
    )
    what: tuple[Any, ...]
    if kind in ("deaf", "cut", "refused", "flaky", "late", "slow"):
        what = (who, seconds)
    elif kind == "freeze":
        what = (chance.choice(("runner", "runner", worker)), seconds)
    elif kind == "stop producer":
        what = (f"producer{chance.randrange(producers)}", chance.random() < 0.5)
    elif kind in ("kill worker", "connection lost"):
        what = (worker,)
    elif kind == "broker down":
        what = (seconds,)
    else:
        what = ()
    return Action(at, kind, what)
