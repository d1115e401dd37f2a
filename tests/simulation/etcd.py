"""One etcd, as each process reaches it: through its own bad network.

The server is the model checker's (``tests.model.model_etcd``): real bytes, one state, pure functions. Here it gets
virtual time (leases that run out), watches that wait, and for each process a ``Link`` on which requests and replies
take time, get lost, or arrive when nobody waits for them any more.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.errors import ConnectFailed, ConnectionLost, DeadlinePassed
from tests.model.model_etcd import INITIAL, EtcdState, answer, expire, lead_anew, watch
from tests.simulation.scheduler import Process, Scheduler, Thread

__all__ = ["Etcd", "Link", "SimTransport"]

#: Seconds between the end of a lease's time and its removal.
LAZY_SECONDS = 0.5


@dataclass
class Link:
    """What happens on the way between one process and etcd. Chances are for each call."""

    cut: bool = False
    refused: bool = False
    deaf: bool = False
    lose_request: float = 0.0
    lose_reply: float = 0.0
    late_request: float = 0.0
    latency: float = 0.002
    #: One-shot faults, by what the request's bytes hold: (needle, kind).
    once: list[tuple[bytes, str]] = field(default_factory=list)


class Etcd:
    """See the module. ``on_change`` is called with the state before and after, whenever it changed."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.state: EtcdState = INITIAL._replace(now=scheduler.now)
        self.links: dict[int, Link] = {}
        self.watchers: list[Thread] = []
        self.on_change: Callable[[EtcdState, EtcdState], None] = lambda before, after: None
        self.keeper = scheduler.process("etcd")
        self._clock = scheduler.spawn(self.keeper, "leases", self._keep_leases)
        self.compacted = 0
        self.fault: Callable[[Process, str, bytes], str | None] = lambda process, path, request: None
        self.disturbed_at = 0.0
        #: Leases whose time was over; not those that were revoked.
        self.ran_out: set[int] = set()
        #: What the keys of those leases held then.
        self.lost_values: list[bytes] = []

    def link(self, process: Process) -> Link:
        return self.links.setdefault(process.pid, Link())

    # --- the server -----------------------------------------------------------------------------------------------

    def apply(self, path: str, request: bytes) -> bytes | Exception:
        before = self.state._replace(now=self._scheduler.now)
        try:
            after, reply = answer(before, path, request)
        except Exception as error:
            if isinstance(error, NotImplementedError | AssertionError | TypeError):
                raise
            return error
        self._move(after)
        return reply

    def _move(self, after: EtcdState) -> None:
        before, self.state = self.state, after
        if after.leases != before.leases:
            self._scheduler.unpark(self._clock)
        if after.revision != before.revision:
            self.on_change(before, after)
            watchers, self.watchers = self.watchers, []
            for thread in watchers:
                self._scheduler.unpark(thread)

    def _keep_leases(self) -> None:
        scheduler = self._scheduler
        while True:
            ends = [lease.ends_at for lease in self.state.leases]
            scheduler.park(min(ends) + LAZY_SECONDS - scheduler.now if ends else None)
            for lease in self.state.leases:
                if scheduler.now >= lease.ends_at + LAZY_SECONDS:
                    self.ran_out.add(lease.ident)
                    self.lost_values += [kv.value for kv in self.state.kvs if kv.lease == lease.ident]
                    self._move(expire(self.state._replace(now=scheduler.now), lease.ident))

    def change_leader(self) -> None:
        self._move(lead_anew(self.state._replace(now=self._scheduler.now)))
        self._scheduler.unpark(self._clock)

    def compact(self) -> None:
        """Forget history: a watch from before is cancelled."""
        self.compacted = self.state.revision
        self.state = self.state._replace(events=())
        watchers, self.watchers = self.watchers, []
        for thread in watchers:
            self._scheduler.unpark(thread)

    def keys(self, start: bytes) -> list[Any]:
        return [kv for kv in self.state.kvs if kv.key.startswith(start)]


class SimTransport:
    """The transport's seam for one process."""

    def __init__(self, etcd: Etcd, process: Process, scheduler: Scheduler, chance: random.Random) -> None:
        self._etcd = etcd
        self._process = process
        self._scheduler = scheduler
        self._chance = chance
        self._link = etcd.link(process)

    def call(self, path: str, request: bytes, timeout_seconds: float, *, repeatable: bool = False) -> bytes:
        scheduler, link, chance, etcd = self._scheduler, self._link, self._chance, self._etcd
        ends_at = scheduler.now + timeout_seconds
        while True:
            self._travel(link, ends_at)
            if link.refused:
                raise ConnectFailed("the model refuses the connection")
            if link.cut:
                scheduler.sleep(max(0.0, ends_at - scheduler.now))
                raise DeadlinePassed("the model's network is cut", maybe_applied=True)
            fault = self._fault(path, request)
            if fault is not None:
                etcd.disturbed_at = scheduler.now
            if fault == "late":
                delay = chance.choice([0.5, 2.0, 6.0, 20.0]) * chance.random()
                scheduler.spawn(etcd.keeper, "late request", lambda: etcd.apply(path, request), delay)
            elif fault != "lost":
                reply = etcd.apply(path, request)
                self._travel(link, ends_at)
                if fault is None and not link.deaf and not link.cut:
                    if isinstance(reply, Exception):
                        raise reply
                    return reply
            if repeatable and not link.deaf and not link.cut and chance.random() < 0.5:
                continue  # as the client does at another endpoint, at once
            if fault is not None and chance.random() < 0.5:
                raise ConnectionLost("the model broke the connection", maybe_applied=True)
            scheduler.sleep(max(0.0, ends_at - scheduler.now))
            raise DeadlinePassed("the model lost the request or its answer", maybe_applied=True)

    def _fault(self, path: str, request: bytes) -> str | None:
        link, chance = self._link, self._chance
        for each in link.once:
            if each[0] in request:
                link.once.remove(each)
                return each[1]
        drawn = chance.random()
        for kind, likely in (
            ("reply", link.lose_reply),
            ("late", link.late_request),
            ("lost", link.lose_request),
        ):
            if drawn < likely:
                return kind
            drawn -= likely
        return self._etcd.fault(self._process, path, request)

    def _travel(self, link: Link, ends_at: float) -> None:
        seconds = link.latency * (0.2 + self._chance.random())
        if self._scheduler.now + seconds > ends_at:
            self._scheduler.sleep(max(0.0, ends_at - self._scheduler.now))
            raise DeadlinePassed("the model's network is slow", maybe_applied=True)
        self._scheduler.sleep(seconds)

    @contextmanager
    def stream(self, path: str, request: bytes, timeout_seconds: float) -> Iterator[SimStream]:
        ends_at = self._scheduler.now + timeout_seconds
        self._travel(self._link, ends_at)
        if self._link.refused:
            raise ConnectFailed("the model refuses the connection")
        yield SimStream(self._etcd, self._link, self._scheduler, request, ends_at)

    def close(self) -> None:
        pass


class SimStream:
    """A watch: its answers as an iterator, or one at a time."""

    def __init__(self, etcd: Etcd, link: Link, scheduler: Scheduler, request: bytes, ends_at: float) -> None:
        self._etcd = etcd
        self._link = link
        self._scheduler = scheduler
        self._request = messages.WatchRequest.FromString(request)
        self._ends_at = ends_at
        self.ended = False

    def __iter__(self) -> SimStream:
        return self

    def __next__(self) -> bytes:
        answer = self.receive(None)
        if answer is None:
            raise DeadlinePassed("no event in the model", maybe_applied=True)
        return answer

    def receive(self, seconds: float | None) -> bytes | None:
        scheduler, etcd = self._scheduler, self._etcd
        until = self._ends_at if seconds is None else min(self._ends_at, scheduler.now + seconds)
        while True:
            if not (self._link.cut or self._link.deaf or self._link.refused):
                create = self._request.create_request
                if create.start_revision and create.start_revision <= etcd.compacted:
                    return bytes(
                        messages.WatchResponse(canceled=True, compact_revision=etcd.compacted + 1).SerializeToString()
                    )
                found = watch(etcd.state, self._request.SerializeToString())
                if found is not None:
                    create.start_revision = etcd.state.revision + 1
                    return found
            if scheduler.now >= until:
                self.ended = scheduler.now >= self._ends_at
                return None
            assert scheduler.current is not None
            etcd.watchers.append(scheduler.current)
            scheduler.park(until - scheduler.now)
