"""What is done to the beat at work, its store and its broker. ``Run`` starts two beats, strikes, heals and accounts."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.beats.app import PERIODS
from tests.chaos.beats.lane import Beat, Lane
from tests.chaos.beats.ledger import NO_DOUBT, Account, Doubt, of_interval, of_minutes

SETTLE_SECONDS = 12.0
BROKER_AWAY_SECONDS = 10.0
CLOCK_OFF_SECONDS = 3.0


@dataclass
class Run:
    """One run on a lane. ``store`` is the three members of etcd, or ``None``."""

    lane: Lane
    seed: int
    store: Any
    account: Account = field(default_factory=Account)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.skews = (0.0, 0.0)
        #: Of entries that come and go with a deploy: from when, and until when.
        self.begins: dict[str, float] = {}
        self.ends: dict[str, float] = {}

    def run(self, fault: Fault) -> Account:
        if fault.name == "clock 3 s off":
            self.skews = ((CLOCK_OFF_SECONDS, 0.0), (0.0, CLOCK_OFF_SECONDS))[self.seed % 2]
        first = self.lane.start_beat(skew_seconds=self.skews[0])
        began = self.lane.wait_for_arrival("half", 0.0).at
        second = self.lane.start_beat(skew_seconds=self.skews[1])
        second.wait_started()
        time.sleep(self.random.uniform(2.0, 5.0))
        struck = time.time()
        fault.strike(self, first, second)
        doubt = NO_DOUBT if fault.is_orderly else Doubt(struck, time.time())
        time.sleep(SETTLE_SECONDS)
        ended = time.time()
        for beat in self.lane.beats:
            beat.end()
        return self._judge(began, ended, doubt)

    def _judge(self, began: float, ended: float, doubt: Doubt) -> Account:
        arrivals = list(self.lane.arrivals)
        for name in {one.entry for one in arrivals} | {"half", "one", "five"}:
            mine = [one for one in arrivals if one.entry == name]
            begins, ends = self.begins.get(name, began), self.ends.get(name, ended)
            if name in PERIODS:
                self.account.add(of_interval(mine, PERIODS[name], begins, ends, doubt))
        self.account.add(of_minutes([one for one in arrivals if one.entry == "minute"], began, ended, doubt))
        return self.account

    def schedule(self) -> str:
        """All that arrived, for a run that went wrong."""
        lines = [f"{one.at:.3f} {one.entry:6} due {one.due or '-'} id {one.ident}" for one in self.lane.arrivals]
        return "\n".join(lines)

    def stop_for_longer_than_the_ttl(self, beat: Beat) -> None:
        beat.send(signal.SIGSTOP)
        time.sleep(self.lane.ttl_seconds * self.random.uniform(1.3, 2.0))
        beat.send(signal.SIGCONT)

    def deploy(self, first: Beat, second: Beat) -> None:
        """New beats with the new schedule come before the old ones go, one by one."""
        third = self.lane.start_beat("2")
        third.wait_started()
        first.end()
        time.sleep(self.random.uniform(0.5, 2.0))
        fourth = self.lane.start_beat("2")
        fourth.wait_started()
        self.ends["one"] = time.time()
        second.end()
        self.begins["two"] = time.time()


@dataclass(frozen=True)
class Fault:
    """``needs_etcd``: there is no such thing for those without one. ``is_orderly``: no send is cut short by it."""

    name: str
    strike: Callable[[Run, Beat, Beat], object]
    needs_store: bool = False
    needs_etcd: bool = False
    is_orderly: bool = False


def _partition(run: Run, first: Beat, second: Beat) -> None:
    first.cut_store()
    time.sleep(run.lane.ttl_seconds * run.random.uniform(1.3, 2.0))
    first.heal_store()


def _broker_away(run: Run, first: Beat, second: Beat) -> None:
    for beat in (first, second):
        beat.cut_broker()
    time.sleep(BROKER_AWAY_SECONDS)
    for beat in (first, second):
        beat.heal_broker()


def _killed_in_a_send(run: Run, first: Beat, second: Beat) -> None:
    """As soon as the broker has a message: before etcd knows that it was sent, if the machine is quick enough."""
    run.lane.at_next_arrival(first.process.kill)
    first.process.wait(10)


def _leader_killed(run: Run, first: Beat, second: Beat) -> None:
    run.store.kill_leader_once()
    time.sleep(run.lane.ttl_seconds * 2)
    run.store.heal_once()


FAULTS = (
    Fault("none", lambda run, first, second: None, is_orderly=True),
    Fault("SIGTERM", lambda run, first, second: first.end(), is_orderly=True),
    Fault("SIGKILL", lambda run, first, second: first.kill()),
    Fault("SIGKILL in a send", _killed_in_a_send),
    Fault("SIGSTOP", lambda run, first, second: run.stop_for_longer_than_the_ttl(first)),
    Fault("store cut off", _partition, needs_store=True),
    Fault("broker away for 10 s", _broker_away),
    Fault("etcd leader killed", _leader_killed, needs_etcd=True),
    Fault("clock 3 s off", lambda run, first, second: first.kill()),
    Fault("rolling deploy", Run.deploy, is_orderly=True),
)
