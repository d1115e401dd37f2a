"""What became of each tick that was due in a run: once, late, again, twice, or lost. Judged by what the broker got.

The same rules for all contenders. Celery counts an interval from the last run, so its next tick is due a period after
the one before. *Late*: more than ``LATE_SECONDS`` after it was due. *Lost*: not within ``ALLOWED_SECONDS``, which is
more than any fault here lasts plus a takeover. *Twice*: closer than half a period behind the one before, unless that
one was late itself; for a crontab, a second one of the same minute; and any message whose id or whose due time was
there before. *Again* is less than that: one copy, of the same id and due time, of a tick that was being sent in the
moment of a fault (``Doubt``). At-least-once delivery can't do without it: nobody knows whether the broker has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

LATE_SECONDS = 1.0
ALLOWED_SECONDS = 16.0
#: So much before its minute a crontab's tick may come, from a host whose clock is fast.
EARLY_SECONDS = 5.0
#: So long before or after a fault a send that it hit may have arrived, on a busy machine.
SEND_SECONDS = 1.0


@dataclass(frozen=True)
class Arrival:
    """One message, at the wall clock of who took it from the broker. ``due`` is empty where beats don't say."""

    entry: str
    at: float
    ident: str
    due: str = ""


@dataclass(frozen=True)
class Doubt:
    """From when until when a fault may have hit a send. Without a fault there is no such time."""

    begins: float = math.inf
    ends: float = -math.inf

    def allows(self, first: Arrival, copy: Arrival) -> bool:
        same = copy.ident == first.ident and copy.due == first.due != ""
        return same and self.begins - SEND_SECONDS <= first.at <= self.ends + SEND_SECONDS


NO_DOUBT = Doubt()


@dataclass
class Account:
    once: int = 0
    late: int = 0
    again: int = 0
    twice: int = 0
    lost: int = 0
    latest_seconds: float = 0.0

    def add(self, other: Account) -> None:
        self.once += other.once
        self.late += other.late
        self.again += other.again
        self.twice += other.twice
        self.lost += other.lost
        self.latest_seconds = max(self.latest_seconds, other.latest_seconds)

    def late_by(self, seconds: float) -> None:
        if seconds > LATE_SECONDS:
            self.late += 1
            self.latest_seconds = max(self.latest_seconds, seconds)
        else:
            self.once += 1

    def __str__(self) -> str:
        late = f"{self.late} (max {self.latest_seconds:.1f} s)" if self.late else "0"
        return f"{self.once} / {late} / {self.again} / {self.twice} / {self.lost}"


def _first_of_each(arrivals: Iterable[Arrival], account: Account, doubt: Doubt) -> list[Arrival]:
    """Those that aren't a copy of an earlier one by their id or by their due time."""
    kept: list[Arrival] = []
    copied: set[Arrival] = set()
    for arrival in sorted(arrivals, key=lambda one: one.at):
        first = next((one for one in kept if one.ident == arrival.ident or one.due == arrival.due != ""), None)
        if first is None:
            kept.append(arrival)
        elif doubt.allows(first, arrival) and first not in copied:
            copied.add(first)
            account.again += 1
        else:
            account.twice += 1
    return kept


def of_interval(
    arrivals: Iterable[Arrival], period: float, begins: float, ends: float, doubt: Doubt = NO_DOUBT
) -> Account:
    """An entry that was in the schedule from ``begins`` (of a beat that was at work) until ``ends``."""
    account = Account()
    kept = _first_of_each((one for one in arrivals if begins <= one.at <= ends), account, doubt)
    before, before_late = begins, False
    for arrival in kept:
        gap = arrival.at - before
        if gap < period / 2 and not before_late and before != begins:
            account.twice += 1
            continue
        _missed(account, gap, period)
        account.late_by(gap - period)
        before, before_late = arrival.at, gap - period > period / 4
    _missed(account, ends - before, period)
    return account


def _missed(account: Account, gap: float, period: float) -> None:
    if gap > period + ALLOWED_SECONDS:
        account.lost += max(1, int((gap - ALLOWED_SECONDS) / period))


def of_minutes(arrivals: Iterable[Arrival], begins: float, ends: float, doubt: Doubt = NO_DOUBT) -> Account:
    account = Account()
    kept = _first_of_each(arrivals, account, doubt)
    first = int(begins // 60) + 1
    last = int((ends - ALLOWED_SECONDS) // 60)
    for minute in range(first, last + 1):
        start = minute * 60
        mine = [one for one in kept if start - EARLY_SECONDS <= one.at < start + 60 - EARLY_SECONDS]
        if not mine:
            account.lost += 1
            continue
        account.twice += len(mine) - 1
        account.late_by(mine[0].at - start)
    return account
