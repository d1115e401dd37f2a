"""The explorer's world: everything that decides what may happen next, as one immutable, hashable value.

Time is the server's and moves on to the scenario's instants; a client's own clock runs at its ``rate``. A client is
what a process is in production: a session, a *main* lane that acquires, holds and releases, and a *keeper* lane that
renews and pays debts. Its *guardian* lane is its parent process's, which renews for it. Each lane drives one production
machine at a time.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from celery_etcdlock.core.operations import Operation
from celery_etcdlock.core.protocol import Machine
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.errors import LockUnavailable
from tests.model.model_etcd import EtcdState

__all__ = [
    "CLAIM",
    "CLAIM_LEASE",
    "NAME",
    "Attempt",
    "Client",
    "Faults",
    "Frozen",
    "Held",
    "Lane",
    "PendingDelete",
    "Plan",
    "Scenario",
    "Session",
    "Standing",
    "Violation",
    "World",
    "lease_of",
    "mark_of",
    "on_shared",
    "record_of",
]

NAME = "report"
#: The key of a message that hasn't started, on a lease that nobody renews.
CLAIM = "ap"
CLAIM_LEASE = 200
PREFIX = "/m/"


class Violation(AssertionError):
    """A property doesn't hold. ``rule`` names it."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule = rule


# --- what is explored ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """One acquire and, if it succeeds, a body and a release. ``wait_seconds`` ``None`` is a try-lock.

    ``takes_over``: not an acquire, but the lock that was taken for the message before; whoever has it is a copy of it.
    """

    wait_seconds: float | None = None
    takes_over: bool = False
    #: How long the key stands that is put without renewal; 0: none is (``without_renewal``).
    stands_for: float = 0.0
    #: That key is a queue position, for a message that comes back so often at the most; else a window.
    comes_back: int = 0
    #: A copy of that message: it comes back, once, with the position that the first has.
    copies: bool = False

    @property
    def without_renewal(self) -> bool:
        return bool(self.stands_for) or self.copies


@dataclass(frozen=True)
class Plan:
    """What one client does: its attempts one after the other, on at most ``sessions`` sessions.

    ``opened``: its first session stands from the beginning. ``rate``: local seconds per second of the server.
    """

    attempts: tuple[Attempt, ...] = (Attempt(),)
    renewals: int = 0
    sessions: int = 1
    opened: bool = True
    #: How often its parent may renew for it.
    guards: int = 0
    #: Its first attempt has come as far as it can, calmly, before the others begin.
    ahead: bool = False
    #: Nothing of it before this time.
    not_before: float = 0.0
    rate: float = 1.0
    #: By how much its wall clock is ahead; ``None``: it takes no key to be over.
    wall: float | None = None
    limit: int | None = None


class Faults(NamedTuple):
    """How often each of these may happen, in any order and at any time."""

    #: A request gets no answer: it may have been applied, or is applied at any later time, or never.
    unanswered: int = 0
    #: A request is refused and surely not applied.
    refused: int = 0
    #: The transport itself sends a repeatable request twice; the copy arrives at any later time.
    echoes: int = 0
    #: A watch ends without an event.
    spurious: int = 0
    #: Time moves on, for all, to the scenario's next instant. Whoever doesn't act meanwhile was paused.
    ticks: int = 0
    #: An answer travels for a while after the request was applied, so that others come in between; -1: any number.
    delays: int = -1
    crashes: int = 0
    #: An administrator deletes one key under the name.
    admin_deletes: int = 0
    admin_revokes: int = 0
    #: The leader changes; leases get their whole TTL anew. The old one may still answer keepalives.
    elections: int = 0
    #: A successor adopts the key of a holder, as rule 1 asks for it.
    hand_overs: int = 0
    #: Requests of one process travel in one transaction, nested.
    batches: int = 0


@dataclass(frozen=True)
class Scenario:
    name: str
    plans: tuple[Plan, ...]
    faults: Faults
    limit: int = 1
    ttl_seconds: int = 30
    #: The times, by the server's clock, to which ``Faults.ticks`` move on from 0.
    instants: tuple[float, ...] = ()
    answer_seconds: float = 5.0
    #: How long the lock of the message stands (``Attempt.takes_over``).
    claim_stands_for: float | None = None
    #: TTL of leases that nobody renews.
    shared_ttl_seconds: int = 128
    #: More faults, for a deeper run.
    deep: Faults | None = None


# --- its state ----------------------------------------------------------------------------------------------------


class Frozen:
    """A machine that nobody changes any more; ``thaw`` gives a copy to go on with. Equal if it would act alike."""

    __slots__ = ("_hash", "key", "machine")

    def __init__(self, machine: Machine[Any]) -> None:
        self.machine = machine
        self.key = _key(machine)
        self._hash = hash(self.key)

    def thaw(self) -> Machine[Any]:
        machine = copy.copy(self.machine)
        inner = getattr(machine, "_resolve", None)
        if inner is not None:
            machine._resolve = copy.copy(inner)  # type: ignore[attr-defined]
        return machine

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frozen) and self.key == other.key


def _key(value: Any) -> Any:
    if isinstance(value, Machine):
        state = _at_first(type(value)) | vars(value)
        return (type(value).__name__, *(_key(field) for field in state.values()))
    if isinstance(value, LockUnavailable):
        return (value.maybe_applied, value.permanent)
    return value


@cache
def _at_first(machine: type[Machine[Any]]) -> dict[str, Any]:
    """What a machine has of its class until it sets it: all of its state, and always in one order."""
    of_classes = {name: value for one in reversed(machine.__mro__) for name, value in vars(one).items()}
    return {
        name: value
        for name, value in of_classes.items()
        if not name.startswith(("__", "_abc_")) and not callable(value) and not isinstance(value, property)
    }


class Lane(NamedTuple):
    """A machine at work. ``reply`` is ``None`` until the request was applied; then what the server answered."""

    purpose: str
    machine: Frozen
    operation: Operation
    path: str
    request: bytes
    answer_by: float
    sent_at: float
    reply: bytes | tuple[int, str] | None = None
    #: For a renewal: the fencing token of the lock held whose key wasn't there any more when the keepalive was sent.
    gone: int | None = None
    #: It works on the client's lease that isn't renewed.
    shared: bool = False
    #: When the machine began, by the server's clock; kept where the end of a key counts from it.
    began_at: float = 0.0


class Session(NamedTuple):
    lease: int
    epoch: int
    deadline: float
    lost: bool = False
    opened_at: float = 0.0
    term: int = 0


class PendingDelete(NamedTuple):
    """As in ``locking.session``. ``shared``: it hangs on the lease that isn't renewed."""

    token: str
    guard: int | None = None
    attempt: str | None = None
    shared: bool = False


class Standing(NamedTuple):
    """A key that stands without renewal, as its writer knows it; ``until`` by the server's clock."""

    token: str
    revision: int
    until: float


class Held(NamedTuple):
    """What a client believes to own, for as long as its session's deadline lies ahead."""

    token: str
    fencing_token: int
    doubtful: bool


class Client(NamedTuple):
    alive: bool = True
    session: Session | None = None
    sessions: int = 0
    attempt: int = 0
    #: The token of the attempt under way.
    token: str = ""
    #: A token whose last holding ended without a doubt: the next attempt's (``locking.key_tokens``).
    spare: str = ""
    #: The highest fencing token of an ownership that had ended when this attempt began.
    floor: int = 0
    give_up_at: float = 0.0
    held: Held | None = None
    main: Lane | None = None
    keeper: Lane | None = None
    pending_deletes: tuple[PendingDelete, ...] = ()
    #: Its session on a lease that isn't renewed, and what it has there: a window, or a queue position.
    shared: Session | None = None
    window: Standing | None = None
    position: Standing | None = None
    #: How often its message may come back yet.
    returns: int = 0
    #: How many tries to take over a key it has made, and the mark of the one under way.
    tries: int = 0
    mark: str | None = None
    renewals: int = 0
    #: Its parent at work for it, how often it may be yet, and for which lease it vouches until when.
    guardian: Lane | None = None
    guards: int = 0
    vouched: tuple[int, float] = (0, 0.0)
    #: An administrator took the held key away: P1 and P2 don't cover that.
    excused: bool = False


class World(NamedTuple):
    etcd: EtcdState
    clients: tuple[Client, ...]
    #: Requests without an answer that weren't applied: each may be, at any time.
    limbo: tuple[tuple[str, bytes], ...]
    faults: Faults
    #: Fencing tokens: of all beliefs so far, and the highest of an ownership that has ended.
    fences: frozenset[int] = frozenset()
    ended: int = 0
    interfered: bool = False
    #: The revision that the message knows of its lock.
    claim: int = 0

    def with_client(self, index: int, client: Client) -> World:
        return self._replace(clients=(*self.clients[:index], client, *self.clients[index + 1 :]))


def lease_of(operation: Operation) -> int:
    """The lease of the session that the operation names; 0 for one that names none."""
    tries = getattr(operation, "tries", None)
    return int(getattr(operation if tries is None else tries[0], "lease", 0))


def on_shared(client: Client) -> tuple[PendingDelete, ...]:
    """The debts that the end of its renewed session doesn't pay."""
    return tuple(debt for debt in client.pending_deletes if debt.shared)


def mark_of(index: int, client: Client) -> str:
    """What makes the client's next try to take over a key known again."""
    return f"x{index}.{client.tries}"


def record_of(index: int, limit: int) -> Record:
    return Record(Delivery(f"t{index}"), "t", "h", index, 0.0, limit)
