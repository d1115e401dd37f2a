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
    #: ``worker_cancel_long_running_tasks_on_connection_loss``
    cancels: bool = False


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
            name: value
            for name, value in vars(self.config).items()
            if value != getattr(default, name) or name == "broker"
        }
        lines = [f"seed {self.seed}: {config}"]
        lines += [f"  task {number}: {spec}" for number, spec in enumerate(self.specs)]
        lines += [f"  {action}" for action in self.actions]
        return "\n".join(lines)


LIFETIMES = ("while_executing", "until_executing", "until_executed", "until_and_while_executing", "until_expired")
AT_ENQUEUE = ("skip", "raise", "join", "replace")
AT_RUN = ("skip", "raise", "retry", "wait", "join", "replace")

FAULTS = (
    ("deaf", 3),
    ("cut", 1),
    ("refused", 1),
    ("flaky", 2),
    ("late", 1),
    ("slow", 1),
    ("freeze", 1),
    ("kill child", 2),
    ("kill worker", 1),
    ("stop producer", 1),
    ("leader", 1),
    ("compact", 1),
    ("broker down", 1),
    ("connection lost", 1),
)


@dataclass(frozen=True)
class Focus:
    """Makes plans of one kind likelier: where a fault of one kind has to be found soon."""

    spec: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    who: tuple[str, ...] = ()
    least_faults: int = 0
    least_work: float = 0.0
    copies: float = 0.2
    revokes: float = 0.12
    expires: float = 0.15
    retries: float = 0.45
    forged: float = 0.05
    own_ids: float = 0.08
    standalone: bool = True


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
        hold=chance.choice((0.0, 0.0, 0.0, 3.0)) if lock not in ("until_expired", "until_executing") else 0.0,
        late=late,
        requeue_lost=late and chance.random() < 0.5,
        pending_ttl=chance.choice((40.0, 200.0, 200.0)) if lock not in ("while_executing", "until_expired") else None,
        unique_for=chance.choice((10.0, 25.0)) if lock == "until_expired" else None,
        wait_timeout=chance.choice((8.0, 20.0)),
        on_lost=chance.choice(("raise", "raise", "flag")),
        soft=chance.choice((None, None, 1.0, 3.0)),
        hard=chance.choice((None, None, None, 5.0)),
    )


def make_script(chance: random.Random, focus: Focus) -> dict[str, Any]:
    ends = [chance.choice(("ok", "ok", "ok", "fail"))]
    if chance.random() < focus.retries:
        ends = [chance.choice(("retry", "retry", "replace", "retry_quietly"))] * chance.choice((1, 1, 2)) + ends
    return {
        "ends": ends,
        "work": [round(focus.least_work + chance.choice((0.02, 0.3, 2.0, 6.0)) * chance.random(), 3) for _ in ends],
        "countdown": chance.choice((0, 0, 1, 4, 9)),
        "after": chance.choice((0.0, 0.0, 0.0, 0.7)),
    }


def make_config(chance: random.Random) -> Config:
    skewed = chance.random() < 0.35
    offsets = [round(chance.choice((-1, 1)) * 100 * chance.random(), 1) if skewed else 0.0 for _ in range(8)]
    return Config(
        broker=chance.choice(("redis", "amqp")),
        # Longer than anything waits in a worker for its time, by whatever clock: else Celery's messages multiply.
        visibility=250.0 if skewed else chance.choice((30.0, 120.0)),
        workers=chance.choice((1, 2, 2)),
        slots=chance.choice((1, 1, 2)),
        prefetch=chance.choice((1, 4)),
        producers=chance.choice((1, 2, 3)),
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


def make_plan(seed: int, focus: Focus | None = None) -> Plan:
    focus = focus or Focus()
    chance = random.Random(f"plan {seed}")
    # By a chance of its own, so that the seeds that are known stay what they are.
    cancels = random.Random(f"cancels {seed}").random() < 0.4
    config = replace(make_config(chance), **{"cancels": cancels, **focus.config})
    specs = [replace(make_spec(chance), **focus.spec) for _ in range(chance.choice((1, 1, 2)))]
    actions: list[Action] = []
    clumps = [BUSY_SECONDS * 0.8 * chance.random() for _ in range(chance.randrange(1, 5))]
    for number in range(chance.randrange(3, 12)):
        at = chance.choice(clumps) + chance.choice((0.0, 0.5, 5.0)) * chance.random()
        options: dict[str, Any] = {}
        if chance.random() < 0.15:
            options["countdown"] = chance.choice((1, 5))
        if chance.random() < focus.expires:
            options["expires"] = chance.choice((1, 6, 15))
        if chance.random() < focus.own_ids:
            options["task_id"] = f"own-{number}" + chance.choice(("", "", "-" + "long" * 200))
        producer, spec, name = chance.randrange(config.producers), chance.randrange(len(specs)), chance.choice("AAAB")
        actions.append(Action(at, "call", (number, producer, spec, name, make_script(chance, focus), options)))
        if chance.random() < focus.revokes:
            actions.append(Action(at + 8 * chance.random(), "revoke", (number, chance.random() < 0.3)))
        if chance.random() < focus.copies:
            actions.append(Action(at + chance.choice((0.2, 2.0, 10.0)) * chance.random(), "copy", (number,)))
        if chance.random() < focus.forged:
            forged = chance.choice(FORGED)
            actions.append(Action(at + chance.choice((0.2, 2.0)) * chance.random(), "forged copy", (number, forged)))
    for _ in range(chance.choice((0, 0, 0, 1, 3)) if focus.standalone else 0):
        producer, name = chance.randrange(config.producers), f"{chance.randrange(len(specs))}:A"
        held = (producer, name, chance.choice((0.0, 2.0, 8.0)), round(3 * chance.random(), 2))
        actions.append(Action(chance.choice(clumps) + 2 * chance.random(), "with lock", held))
    for _ in range(max(focus.least_faults, chance.choice((0, 1, 2, 3, 5)))):
        at = BUSY_SECONDS * chance.random() if chance.random() < 0.3 else chance.choice(clumps) + 4 * chance.random()
        actions.append(_fault(chance, at, config, focus))
    return Plan(seed, config, specs, sorted(actions, key=lambda action: action.at))


def _fault(chance: random.Random, at: float, config: Config, focus: Focus) -> Action:
    kinds, weights = zip(*FAULTS, strict=True)
    kind = chance.choice(focus.faults) if focus.faults else chance.choices(kinds, weights)[0]
    workers = [f"worker{number}" for number in range(config.workers)]
    producers = [f"producer{number}" for number in range(config.producers)]
    who = chance.choice(focus.who or [*workers * 2, *producers * 2, "runner", "runner", "all"])
    worker = chance.choice(workers)
    seconds = round(chance.choice((0.5, 1.6, 3.0, 10.0)) * (0.5 + chance.random()), 2)
    what: tuple[Any, ...] = ()
    if kind in ("deaf", "cut", "refused", "flaky", "late", "slow"):
        what = (who, seconds)
    elif kind == "freeze":
        what = (chance.choice(("runner", "runner", worker)), seconds)
    elif kind == "stop producer":
        what = (chance.choice(producers), chance.random() < 0.5)
    elif kind in ("kill worker", "connection lost"):
        what = (worker,)
    elif kind == "broker down":
        what = (seconds,)
    return Action(at, kind, what)


#: Headers of ours as nobody of us writes them.
FORGED: tuple[dict[str, Any], ...] = (
    {"etcdlock_waiting_since": "soon", "etcdlock_comebacks": 3, "etcdlock_retries": 0, "etcdlock_waits_for": "0:A"},
    {"etcdlock_waiting_since": 1e300, "etcdlock_comebacks": 1, "etcdlock_retries": 0, "etcdlock_waits_for": "0:A"},
    {"etcdlock_waiting_since": 10**400, "etcdlock_comebacks": -1, "etcdlock_waits_for": "0:A"},
    {"etcdlock_waiting_since": None, "etcdlock_comebacks": [], "etcdlock_retries": {}, "etcdlock_waits_for": ["0:A"]},
    {"etcdlock_claims": [["0:A", "0" * 24, 2]], "etcdlock_line": ["0:A", 7, "x"]},
    {"etcdlock_claims": "none", "etcdlock_line": {}, "etcdlock_duplicate": [1, 2, 3, 4], "etcdlock_joins": ["join"]},
    {"etcdlock_call": ["somebody", "else"], "etcdlock_copy": "yes", "etcdlock_waited": ["x", -1]},
)
