"""What is done to whom. A fault hits the worker that holds the lock, or the store; some end of themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.chaos.lane import Lane

__all__ = ["FAULTS", "Fault", "Strike"]


@dataclass
class Strike:
    """One fault at work: ``holder`` is the entrance of the body that is inside."""

    lane: Lane
    store: Any
    holder: dict[str, Any]
    number: int
    body_seconds: float

    def __post_init__(self) -> None:
        self.child = [self.holder["pid"], *self.holder["helpers"]]
        self.site = self.lane.site_of(self.holder)
        self.parent = [self.site.pid]

    def heal_way(self) -> None:
        self.site.way.heal()


@dataclass(frozen=True)
class Fault:
    """``lasts``: until it is healed, in TTLs, from and to. ``shared``: it hits all lanes at once. ``in_network``:
    workers and members of etcd are in a network of their own (``network``).

    ``settle_seconds``: how long tasks that must run may take to come to their end after the last run. Redis looks for
    messages that nobody acknowledged ten seconds after a worker started, and each hundred seconds from then on.
    """

    name: str
    begin: Callable[[Strike], object]
    heal: Callable[[Strike], object] = lambda strike: None
    lasts: tuple[float, float] = (0.0, 0.0)
    shared: bool = False
    needs_etcd: bool = False
    needs_kept: bool = False
    in_network: bool = False
    settle_seconds: float = 160.0


LONG = (1.3, 2.0)

FAULTS = (
    Fault("none", lambda strike: None),
    Fault("kill -9: child", lambda strike: strike.lane.kill(*strike.child)),
    Fault(
        "kill -9: MainProcess",
        lambda strike: (strike.lane.kill(*strike.parent), strike.lane.note_death(*strike.child)),
    ),
    Fault(
        "kill -9: both",
        lambda strike: strike.lane.kill(*strike.parent, *strike.child),
    ),
    Fault(
        "stop: child",
        lambda strike: strike.lane.pause(*strike.child),
        lambda strike: strike.lane.resume(*strike.child),
        LONG,
    ),
    Fault(
        "stop: MainProcess",
        lambda strike: strike.lane.pause(*strike.parent),
        lambda strike: strike.lane.resume(*strike.parent),
        LONG,
    ),
    Fault(
        "stop: both",
        lambda strike: strike.lane.pause(*strike.parent, *strike.child),
        lambda strike: strike.lane.resume(*strike.parent, *strike.child),
        LONG,
    ),
    Fault(
        "partition",
        lambda strike: strike.site.way.cut(requests=True, replies=True),
        Strike.heal_way,
        LONG,
    ),
    Fault("one-way partition", lambda strike: strike.site.way.cut(replies=True), Strike.heal_way, LONG),
    Fault("replies lost", lambda strike: strike.site.way.cut(replies=True), Strike.heal_way, (0.1, 0.5)),
    Fault(
        "leader killed",
        lambda strike: strike.store.kill_leader(),
        lambda strike: strike.store.heal(),
        LONG,
        shared=True,
    ),
    Fault(
        "leader stopped",
        lambda strike: strike.store.pause_leader(),
        lambda strike: strike.store.heal(),
        LONG,
        shared=True,
    ),
    Fault(
        "all restarted",
        lambda strike: strike.store.restart_all(),
        lambda strike: strike.store.heal(),
        shared=True,
    ),
    Fault(
        "network: worker from etcd",
        lambda strike: strike.site.way.cut(requests=True, replies=True),
        Strike.heal_way,
        LONG,
        in_network=True,
    ),
    Fault(
        "network: one-way",
        lambda strike: strike.site.way.cut(replies=True),
        Strike.heal_way,
        LONG,
        in_network=True,
    ),
    Fault(
        "network: leader from followers",
        lambda strike: strike.store.cut_off_leader(),
        lambda strike: strike.store.heal(),
        LONG,
        shared=True,
        in_network=True,
    ),
    Fault(
        "delivered twice",
        lambda strike: strike.lane.tell_pump(f"again {strike.holder['task']} {strike.body_seconds}"),
        needs_kept=True,
    ),
    Fault("admin deletes", lambda strike: strike.store.delete_keys(strike.lane.name, strike.number)),
    Fault(
        "admin revokes",
        lambda strike: strike.store.revoke_leases(strike.lane.name, strike.number),
        needs_etcd=True,
    ),
)
