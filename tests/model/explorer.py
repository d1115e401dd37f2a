"""Explores every interleaving of a scenario, breadth first, so that the first violation has a shortest schedule.

From each state every event is tried that could come next: the server applies a request, an answer arrives or is lost,
a request times out and is applied much later or never, time passes, a lease expires, a client ends its body, renews,
crashes, an administrator meddles. Faults and ticks are bounded by the scenario, so the states are finite in number;
states that were seen before aren't explored again. All states are kept as hashes of 64 bits.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from celery_etcdlock.core.expiry import ending
from celery_etcdlock.core.operations import (
    AskAge,
    AwaitChange,
    FenceSession,
    GrantLease,
    KeepAlive,
    Release,
    StoreOperation,
    TryAcquire,
)
from celery_etcdlock.core.protocol import Open, Opened, ReleaseKey
from celery_etcdlock.core.record import KeyKind
from celery_etcdlock.core.replies import (
    Changed,
    Failed,
    Owned,
    SessionFenced,
)
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.errors import EtcdStatusError
from celery_etcdlock.etcd.lock_transactions import LockTransactions
from tests.model.clients import Clients, local, session_stands
from tests.model.codec import Codec
from tests.model.model_etcd import INITIAL, answer, expire, lead_anew, stale_keep_alive, watch
from tests.model.properties import check_deletions, check_rest, check_state, places, token_of
from tests.model.world import (
    CLAIM,
    CLAIM_LEASE,
    NAME,
    Client,
    Held,
    Lane,
    Scenario,
    Session,
    Violation,
    World,
    on_shared,
    record_of,
)

__all__ = ["Explorer", "Report"]

UNKNOWN_LEASE: bytes = messages.LeaseTimeToLiveResponse(ID=1, TTL=-1).SerializeToString()
UNANSWERED = Failed(LockUnavailable("no answer", maybe_applied=True))
REFUSED = Failed(LockUnavailable("refused"))

Event = tuple[str, World]


@dataclass
class Report:
    scenario: str
    states: int = 0
    transitions: int = 0
    at_rest: int = 0
    longest: int = 0
    seconds: float = 0.0
    complete: bool = True
    violation: Violation | None = None
    schedule: list[str] = field(default_factory=list)
    #: How many beliefs began, by transitions: a scenario in which nobody ever owns shows nothing.
    beliefs: int = 0

    def __str__(self) -> str:
        found = f"; VIOLATION {self.violation}" if self.violation else ""
        ended = "" if self.complete else " (not all)"
        return (
            f"{self.scenario}: {self.states} states{ended}, {self.transitions} transitions, {self.at_rest} at rest, "
            f"{self.longest} steps at most, {self.seconds:.1f} s{found}"
        )

    def explain(self) -> str:
        return "\n".join([str(self), *(f"  {number:3} {step}" for number, step in enumerate(self.schedule, 1))])


class Explorer:
    def __init__(
        self,
        scenario: Scenario,
        *,
        places_class: type[LockTransactions] = LockTransactions,
        most_states: int = 2_000_000,
        one_per_name: bool = True,
        deep: bool = False,
    ) -> None:
        self.scenario = scenario
        self.faults = scenario.deep if deep and scenario.deep is not None else scenario.faults
        self.codec = Codec(places_class)
        self.clients = Clients(scenario, self.codec)
        self.most_states = most_states
        self.one_per_name = one_per_name

    # --- the search -------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        report = Report(self.scenario.name)
        started = time.perf_counter()
        try:
            self._search(report)
        finally:
            report.seconds = time.perf_counter() - started
        return report

    def _search(self, report: Report) -> None:
        start = self.initial()
        seen = {hash(start)}
        # Of each state: from which one, by which event. The schedule of a violation is read from it.
        origins: list[tuple[int, str]] = [(-1, "start")]
        queue: deque[tuple[int, int, World]] = deque([(0, 0, start)])
        while queue:
            number, depth, world = queue.popleft()
            report.longest = depth
            name = "check"
            try:
                moves = False
                for name, following in self.events(world):
                    report.transitions += 1
                    moves = moves or not name.startswith("!")
                    mark = hash(following)
                    if mark in seen:
                        continue
                    seen.add(mark)
                    check_state(following, self.scenario)
                    report.beliefs += len(following.fences) > len(world.fences)
                    if len(seen) > self.most_states:
                        report.complete = False
                        continue
                    origins.append((number, name))
                    queue.append((len(origins) - 1, depth + 1, following))
                if not moves:
                    report.at_rest += 1
                    name = "at rest"
                    check_rest(world, self.scenario)
            except Violation as violation:
                report.violation = violation
                report.schedule = [*self._schedule(origins, number), name if name != "check" else self.failing]
                break
        report.states = len(seen)

    def _schedule(self, origins: list[tuple[int, str]], number: int) -> list[str]:
        steps = []
        while number > 0:
            number, name = origins[number]
            steps.append(name)
        return steps[::-1]

    def initial(self) -> World:
        clients = tuple(Client(renewals=plan.renewals, guards=plan.guards) for plan in self.scenario.plans)
        world = World(INITIAL, clients, (), self.faults)
        for index, plan in enumerate(self.scenario.plans):
            if plan.opened:
                world = self._open_at_once(world, index)
                if any(attempt.stands_for for attempt in plan.attempts):
                    world = self._share_at_once(world, index)
        if any(attempt.takes_over for plan in self.scenario.plans for attempt in plan.attempts):
            world = self._claim(world)
        for index, plan in enumerate(self.scenario.plans):
            world = self.clients.begin(world, index)
            while plan.ahead and (lane := world.clients[index].main) is not None:
                if isinstance(lane.operation, AwaitChange):
                    break
                world = self._applied(world, index, "main", lane)
                answered = world.clients[index].main
                assert answered is not None
                assert answered.reply is not None
                reply = self.codec.decode(lane.operation, lane.request, answered.reply)
                world = self.clients.deliver(world, index, "main", reply)
        return world

    def _claim(self, world: World) -> World:
        """A message holds the lock."""
        record = replace(record_of(0, self.scenario.limit), kind=KeyKind.CLAIM, until=1e6)
        if (seconds := self.scenario.claim_stands_for) is not None:
            record = ending(record, record.attempt, seconds, now=0.0, wall_offset=0.0, opened_at=0.0, term=INITIAL.term)
        epoch, revision = 0, 0
        for step in (0, 1, 2):
            operation = (
                GrantLease(CLAIM_LEASE, 128 if self.scenario.claim_stands_for else 10_000),
                FenceSession(CLAIM_LEASE),
                TryAcquire(CLAIM_LEASE, epoch, NAME, CLAIM, record),
            )[step]
            path, request, _ = self.codec.encode(operation)
            etcd, given = answer(world.etcd, path, request)
            world = world._replace(etcd=etcd)
            reply = self.codec.decode(operation, request, given)
            if isinstance(reply, SessionFenced):
                epoch = reply.epoch
            elif isinstance(reply, Owned):
                revision = reply.revision
        return world._replace(claim=revision)

    def _open_at_once(self, world: World, index: int) -> World:
        world, session = self._opened(world, 16 * (index + 1), self.scenario.ttl_seconds)
        return world.with_client(index, world.clients[index]._replace(session=session, sessions=1))

    def _share_at_once(self, world: World, index: int) -> World:
        world, session = self._opened(world, 16 * (index + 1) + 8, self.scenario.shared_ttl_seconds)
        return world.with_client(index, world.clients[index]._replace(shared=session))

    def _opened(self, world: World, lease: int, ttl_seconds: int) -> tuple[World, Session]:
        machine = Open(lease=lease, ttl_seconds=ttl_seconds, deadline=1.0)
        step = machine.start(0.0)
        while isinstance(step, StoreOperation):
            path, request, _ = self.codec.encode(step)
            etcd, reply = answer(world.etcd, path, request)
            world = world._replace(etcd=etcd)
            step = machine.on(self.codec.decode(step, request, reply), 0.0)
        assert isinstance(step, Opened)
        return world, Session(lease, step.epoch, step.deadline, opened_at=step.opened_at, term=step.term)

    # --- what may happen ----------------------------------------------------------------------------------------------

    def events(self, world: World) -> Iterator[Event]:
        """Every event that may come next, and the state after it. Those with ``!`` need not ever happen."""
        for index, client in enumerate(world.clients):
            if not client.alive:
                continue
            for name in ("main", "keeper", "guardian"):
                lane = getattr(client, name)
                if lane is not None:
                    yield from self._lane_events(world, index, name, lane)
            yield from self._own_events(world, index, client)
            if self._may(world, "crashes"):
                yield f"! {self._who(index)} crashes", self._crash(self._spend(world, "crashes"), index)
        yield from self._server_events(world)
        if self._may(world, "batches"):
            yield from self._batches(world)

    def _may(self, world: World, fault: str) -> bool:
        return bool(getattr(world.faults, fault))

    def _spend(self, world: World, fault: str) -> World:
        left = getattr(world.faults, fault)
        return world if left < 0 else world._replace(faults=world.faults._replace(**{fault: left - 1}))

    @staticmethod
    def _who(index: int) -> str:
        return "ABC"[index]

    def _say(self, index: int, lane: Lane, what: str) -> str:
        return f"{self._who(index)}: {type(lane.operation).__name__} {what}"

    def _lane_events(self, world: World, index: int, name: str, lane: Lane) -> Iterator[Event]:
        late = local(world, self.scenario.plans[index]) >= lane.answer_by
        if isinstance(lane.operation, AwaitChange):
            self.failing = self._say(index, lane, "wakes")
            if watch(world.etcd, lane.request) is not None:
                yield self.failing, self.clients.deliver(world, index, name, Changed())
            elif late:
                yield self._say(index, lane, "times out"), self.clients.deliver(world, index, name, Changed())
            elif self._may(world, "spurious"):
                after = self._spend(world, "spurious")
                yield "! " + self._say(index, lane, "wakes early"), self.clients.deliver(after, index, name, Changed())
            return
        if lane.reply is not None:
            yield from self._answered(world, index, name)
            return
        applied = self._applied(world, index, name, lane)
        if self._may(world, "delays"):
            yield self._say(index, lane, "is applied"), self._spend(applied, "delays")
        else:
            yield from self._answered(applied, index, name)
        if self._may(world, "echoes") and self.codec.encode(lane.operation)[2]:
            twice = self._spend(applied, "echoes")
            yield "! " + self._say(index, lane, "is applied and echoes"), self._into_limbo(twice, lane)
        if late or self._may(world, "unanswered"):
            self.failing = ("! " if not late else "") + self._say(index, lane, "times out before it is applied")
            after = self._into_limbo(world if late else self._spend(world, "unanswered"), lane)
            yield self.failing, self.clients.deliver(after, index, name, UNANSWERED)
        if self._may(world, "refused"):
            self.failing = "! " + self._say(index, lane, "is refused")
            yield self.failing, self.clients.deliver(self._spend(world, "refused"), index, name, REFUSED)
        if isinstance(lane.operation, AskAge) and world.etcd.term > INITIAL.term:
            unknown = self._with_reply(world, index, name, lane, UNKNOWN_LEASE)
            yield "! " + self._say(index, lane, "is asked of the old leader, which never knew the lease"), unknown
        if isinstance(lane.operation, KeepAlive) and world.etcd.term > INITIAL.term:
            reply_bytes = stale_keep_alive(world.etcd, lane.request)
            yield (
                "! " + self._say(index, lane, "is answered by the old leader"),
                self._with_reply(world, index, name, lane, reply_bytes),
            )

    def _answered(self, world: World, index: int, name: str) -> Iterator[Event]:
        lane: Lane = getattr(world.clients[index], name)
        assert lane.reply is not None
        self.failing = self._say(index, lane, "is answered")
        reply = self.codec.decode(lane.operation, lane.request, lane.reply)
        yield self.failing, self.clients.deliver(world, index, name, reply)
        if self._may(world, "unanswered"):
            self.failing = "! " + self._say(index, lane, "loses its reply")
            after = self._spend(world, "unanswered")
            yield self.failing, self.clients.deliver(after, index, name, UNANSWERED)

    def _applied(self, world: World, index: int, name: str, lane: Lane) -> World:
        try:
            etcd, reply = answer(world.etcd, lane.path, lane.request)
        except EtcdStatusError as error:
            return self._with_reply(world, index, name, lane, (int(error.code), error.details))
        if isinstance(lane.operation, Release):
            check_deletions(world, etcd, index, self.scenario)
        return self._with_reply(world._replace(etcd=etcd), index, name, lane, reply)

    @staticmethod
    def _with_reply(world: World, index: int, name: str, lane: Lane, reply: bytes | tuple[int, str]) -> World:
        return world.with_client(index, world.clients[index]._replace(**{name: lane._replace(reply=reply)}))

    @staticmethod
    def _into_limbo(world: World, lane: Lane) -> World:
        return world._replace(limbo=tuple(sorted((*world.limbo, (lane.path, lane.request)))))

    def _own_events(self, world: World, index: int, client: Client) -> Iterator[Event]:
        """What a client does of itself."""
        stands = session_stands(world, client, self.scenario.plans[index])
        if client.main is None:
            if client.held is not None:
                self.failing = f"{self._who(index)} ends its body"
                yield self.failing, self.clients.finish(world, index)
            else:
                self.failing = f"{self._who(index)} begins"
                begun = self.clients.begin(world, index)
                if begun is not world:
                    yield self.failing, begun
        if client.main is None and client.position is not None and client.returns > 0:
            self.failing = f"{self._who(index)} comes back"
            yield self.failing, self.clients.reschedule(world, index)
        if client.keeper is None and client.pending_deletes and (stands or client.pending_deletes[0].shared):
            yield f"{self._who(index)} pays", self.clients.flush(world, index)
        if client.keeper is None and stands and client.renewals > 0:
            yield f"{self._who(index)} renews", self.clients.renew(world, index)
        if self.clients.may_guard(world, index):
            yield f"! {self._who(index)}'s parent renews", self.clients.guard(world, index)
        if client.session is not None and client.sessions and not stands and client.main is None:
            if any(lease.ident == client.session.lease for lease in world.etcd.leases):
                etcd = expire(world.etcd, client.session.lease)
                lost = client._replace(session=client.session._replace(lost=True), pending_deletes=on_shared(client))
                yield f"{self._who(index)} revokes", world.with_client(index, lost)._replace(etcd=etcd)
            elif client.pending_deletes != on_shared(client):
                lost = client._replace(session=client.session._replace(lost=True), pending_deletes=on_shared(client))
                yield f"{self._who(index)} forgets its debts", world.with_client(index, lost)

    def _crash(self, world: World, index: int) -> World:
        client = world.clients[index]
        for lane in (client.main, client.keeper, client.guardian):
            if lane is not None and lane.reply is None and not isinstance(lane.operation, AwaitChange):
                world = self._into_limbo(world, lane)
        return world.with_client(index, Client(alive=False))

    def _server_events(self, world: World) -> Iterator[Event]:
        for number, (path, request) in enumerate(world.limbo):
            if number and world.limbo[number - 1] == (path, request):
                continue
            rest = world.limbo[:number] + world.limbo[number + 1 :]
            try:
                etcd, _ = answer(world.etcd, path, request)
            except EtcdStatusError:
                etcd = world.etcd
            yield f"! the late {path.rpartition('/')[2]} is applied", world._replace(etcd=etcd, limbo=rest)
        for lease in world.etcd.leases:
            if world.etcd.now >= lease.ends_at:
                yield f"lease {lease.ident} expires", world._replace(etcd=expire(world.etcd, lease.ident))
            if self._may(world, "admin_revokes"):
                after = self._spend(world, "admin_revokes")._replace(etcd=expire(world.etcd, lease.ident))
                meddled = self._excuse(after, {kv.key for kv in world.etcd.kvs if kv.lease == lease.ident})
                yield f"! lease {lease.ident} is revoked by an administrator", meddled
        if self._may(world, "ticks") and world.etcd.now < self.scenario.instants[-1]:
            now = next(instant for instant in self.scenario.instants if instant > world.etcd.now)
            yield f"! it is {now:g}", self._spend(world, "ticks")._replace(etcd=world.etcd._replace(now=now))
        if self._may(world, "elections"):
            yield "! the leader changes", self._spend(world, "elections")._replace(etcd=lead_anew(world.etcd))
        if self._may(world, "admin_deletes"):
            for kv in places(world):
                request = messages.DeleteRangeRequest(key=kv.key).SerializeToString()
                etcd, _ = answer(world.etcd, "KV/DeleteRange", request)
                after = self._excuse(self._spend(world, "admin_deletes")._replace(etcd=etcd), {kv.key})
                yield f"! an administrator deletes {token_of(kv)}", after
        if self._may(world, "hand_overs"):
            yield from self._hand_overs(world)

    def _excuse(self, world: World, keys: set[bytes]) -> World:
        """Owners whose key is taken away by a third party aren't covered; those who only wait for their turn are."""
        tokens = {key.rpartition(b"/")[2].decode() for key in keys}
        for index, client in enumerate(world.clients):
            owns = client.held is not None or (client.main is not None and client.main.reply is not None)
            if owns and client.token in tokens:
                world = world.with_client(index, client._replace(excused=True))
        return world._replace(interfered=True)

    def _hand_overs(self, world: World) -> Iterator[Event]:
        """A successor takes over a key whose owner has ended its body: compared and rewritten, as rule 1 says."""
        for giver in world.clients:
            kv = next((kv for kv in places(world) if token_of(kv) == giver.token), None)
            # A lock in doubt is resolved, by its token alone: it can't be handed over.
            if kv is None or giver.main is None or not isinstance(giver.main.machine.machine, ReleaseKey):
                continue
            for index, taker in enumerate(world.clients):
                if self.scenario.plans[index].attempts or taker.held is not None or taker.session is None:
                    continue
                request = messages.PutRequest(key=kv.key, value=kv.value, lease=taker.session.lease)
                etcd, _ = answer(world.etcd, "KV/Put", request.SerializeToString())
                held = Held(giver.token, etcd.revision, False)
                after = self._spend(world, "hand_overs")._replace(etcd=etcd)
                after = after.with_client(index, taker._replace(token=giver.token, held=held))
                yield f"{self._who(index)} takes over {giver.token}", after

    def _batches(self, world: World) -> Iterator[Event]:
        """Two requests travel as nested transactions of one; with rule 4 only if they are about different names."""
        ready = [
            (index, client.main)
            for index, client in enumerate(world.clients)
            if client.alive and client.main is not None and client.main.reply is None
            if client.main.path.endswith("KV/Txn")
        ]
        for (first, one), (second, other) in itertools.pairwise(ready):
            names = {getattr(lane.operation, "name", None) for lane in (one, other)}
            if self.one_per_name and len(names) < 2:
                continue
            batch = messages.TxnRequest()
            for lane in (one, other):
                batch.success.add().request_txn.ParseFromString(lane.request)
            etcd, reply = answer(world.etcd, "KV/Txn", batch.SerializeToString())
            responses = messages.TxnResponse.FromString(reply).responses
            after = self._spend(world, "batches")._replace(etcd=etcd)
            for (index, lane), response in zip(((first, one), (second, other)), responses, strict=True):
                nested = response.response_txn
                nested.header.revision = etcd.revision
                after = self._with_reply(after, index, "main", lane, nested.SerializeToString())
            yield f"! {self._who(first)} and {self._who(second)} share a transaction", after
