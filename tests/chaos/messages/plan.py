"""What a seed makes: a round of histories, each of one lock, its calls, and what is done to their messages.

A *history* has a lock name of its own, one kind of task, and two to four calls that compete for it. Its calls carry
their troubles along: copies at chosen moments, a revoke, an expiry, a soft time limit in the release, a producer that
is killed half-way. Replies that are lost, and what happens to a whole worker, hit whatever goes on at that moment.
Nothing here knows a server; the same seed makes the same round.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "DONE_SECONDS",
    "GHOST_PENDING_SECONDS",
    "HELD_WHILE_RUNNING",
    "LIFETIMES",
    "MOMENTS",
    "TTL_SECONDS",
    "UNIQUE_SECONDS",
    "WAIT_SECONDS",
    "Call",
    "History",
    "Kind",
    "Loss",
    "Round",
    "kinds",
    "make_round",
]

TTL_SECONDS = 6
UNIQUE_SECONDS = 4
WAIT_SECONDS = 240
GHOST_PENDING_SECONDS = 6
#: Longer than any history, and short enough to see marks go.
DONE_SECONDS = 100

LIFETIMES = ("while_executing", "until_executing", "until_executed", "until_and_while_executing", "until_expired")
HELD_WHILE_RUNNING = ("while_executing", "until_executed", "until_and_while_executing")
POLICIES = ("skip", "raise", "retry", "wait", "join", "replace")
#: Refused when the task is defined, or the same as another: docs/semantics.md has no row for them.
NONE = {("until_executing", "retry"), ("until_executing", "wait"), ("until_expired", "replace")}

#: When something happens to a message: while it is queued, comes back for the lock, runs, has run, waits for its retry.
MOMENTS = ("queued", "parked", "running", "ran", "retrying")


@dataclass(frozen=True)
class Kind:
    """Of which kind a history's task is. ``ghosts``: keys of messages that don't exist go after a short time."""

    lifetime: str
    policy: str
    acks_late: bool = False
    limit: int = 1
    ghosts: bool = False

    @property
    def task(self) -> str:
        acks = "late" if self.acks_late else "early"
        return f"chaos.{self.lifetime}.{self.policy}.{acks}.{self.limit}{'.ghosts' if self.ghosts else ''}"

    @property
    def at_call(self) -> bool:
        return self.lifetime != "while_executing"

    @property
    def holds_while_running(self) -> bool:
        return self.lifetime in HELD_WHILE_RUNNING


def _pairs() -> list[tuple[str, str]]:
    return [(lifetime, policy) for lifetime in LIFETIMES for policy in POLICIES if (lifetime, policy) not in NONE]


def _waits_for_windows(pair: tuple[str, str]) -> bool:
    return pair[0] == "until_expired" and pair[1] not in ("skip", "raise")


def kinds() -> Iterator[Kind]:
    for lifetime, policy in _pairs():
        for acks_late in (False, True):
            for limit in (1,) if policy == "replace" else (1, 2):
                for ghosts in (
                    (False, True) if lifetime.startswith("until_e") and lifetime != "until_expired" else (False,)
                ):
                    yield Kind(lifetime, policy, acks_late, limit, ghosts)


@dataclass(frozen=True)
class Call:
    """One call, ``at`` seconds after the history began. ``copies``: moments, and whether marked as redelivered.

    ``strike``: seconds from the end of the body to a soft time limit. ``revoked``: a moment, and whether terminated.
    ``doomed``: its producer is killed between the claim and the publication.
    """

    label: str
    at: float
    producer: int
    seconds: float
    retries: int = 0
    retry_delay: float = 0.0
    replaces: bool = False
    countdown: float = 0.0
    expires: float | None = None
    promised: bool = False
    strike: float | None = None
    copies: tuple[tuple[str, bool], ...] = ()
    revoked: tuple[str, bool] | None = None
    doomed: bool = False

    @property
    def script(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "retries": self.retries,
            "retry_delay": self.retry_delay,
            "replaces": self.replaces,
            "strike": self.strike,
        }

    @property
    def has_own_trouble(self) -> bool:
        """Whether it may end otherwise than by its body, whatever others do."""
        return self.revoked is not None or self.expires is not None or self.strike is not None or self.doomed


@dataclass(frozen=True)
class Loss:
    """Replies that are lost, for ``seconds`` from the request that ``what`` names: ``who`` is producer or worker."""

    who: str
    what: str
    seconds: float


@dataclass
class History:
    name: str
    kind: Kind
    calls: list[Call]
    losses: list[Loss] = field(default_factory=list)
    queue: int = 0


@dataclass
class Round:
    """``to_workers``: seconds after the beginning, what, and to which worker."""

    seed: int
    histories: list[History]
    to_workers: list[tuple[float, str, int]]


def make_round(
    seed: int, size: int, *, clocks_differ: bool, number: int = 0, lifetimes: Sequence[str] = LIFETIMES
) -> Round:
    """``number`` tells lanes apart: the same seed makes other histories there."""
    chance = random.Random(f"messages/{number}/{seed}")
    # To a host whose clock is behind, a key with an end stands for up to two minutes more: nothing waits for one here.
    pairs = [pair for pair in _pairs() if pair[0] in lifetimes and not (clocks_differ and _waits_for_windows(pair))]
    offset = (seed * 2 + number) * size
    histories = [
        _history(chance, f"s{seed}h{index}z", pairs[(offset + index) % len(pairs)], clocks_differ)
        for index in range(size)
    ]
    to_workers = []
    if chance.random() < 0.5:
        what = chance.choice(("broker cut", "restart"))
        to_workers.append((round(chance.uniform(0.5, 4.0), 2), what, chance.randrange(2)))
    return Round(seed, histories, to_workers)


def _history(chance: random.Random, name: str, pair: tuple[str, str], clocks_differ: bool) -> History:
    lifetime, policy = pair
    limit = 2 if policy != "replace" and chance.random() < 0.15 else 1
    doomed = lifetime in ("until_executing", "until_executed") and chance.random() < 0.1 and not clocks_differ
    kind = Kind(lifetime, policy, chance.random() < 0.5, limit, doomed)
    number = chance.randint(2, 4)
    moments = [0.0, *sorted(round(chance.uniform(0.0, 2.5), 2) for _ in range(number - 1))]
    calls = [_call(chance, f"c{index}", at, clocks_differ) for index, at in enumerate(moments)]
    if doomed:
        calls[0] = Call("c0", 0.0, 0, 0.3, doomed=True)
    losses = []
    if chance.random() < 0.4:
        who = chance.choice(("producer", "worker", "worker"))
        what = "claim" if who == "producer" else chance.choice(("position", "acquire", "release", "handover"))
        # Below etcdlock_timeout, so that it is asked again, or above, so that it never gets an answer.
        seconds = chance.choice((round(chance.uniform(0.1, 0.9), 2), round(chance.uniform(1.7, 2.6), 2)))
        losses.append(Loss(who, what, seconds))
    return History(name, kind, calls, losses, chance.randrange(2))


def _call(chance: random.Random, label: str, at: float, clocks_differ: bool) -> Call:
    copies = tuple((chance.choice(MOMENTS), chance.random() < 0.5) for _ in range(chance.choice((0, 0, 1, 1, 2))))
    trouble = chance.choice(("none", "none", "none", "revoked", "expires", "strike", "replaces"))
    retries = chance.choice((0, 0, 1, 2))
    # Wall clocks say when a message is due and when it expires: Celery's own, so left out where they differ.
    return Call(
        label,
        at,
        producer=chance.randrange(2),
        seconds=round(chance.uniform(0.1, 1.4), 2),
        retries=retries,
        retry_delay=chance.choice((0.0, round(chance.uniform(0.3, 1.5), 2))),
        replaces=trouble == "replaces",
        countdown=0.0 if clocks_differ else chance.choice((0.0, 0.0, round(chance.uniform(0.3, 1.5), 2))),
        expires=round(chance.uniform(0.3, 3.0), 2) if trouble == "expires" and not clocks_differ else None,
        promised=chance.random() < 0.25,
        strike=round(chance.uniform(0.0, 0.004), 5) if trouble == "strike" else None,
        copies=copies,
        revoked=(chance.choice(MOMENTS), chance.random() < 0.3) if trouble == "revoked" else None,
    )
