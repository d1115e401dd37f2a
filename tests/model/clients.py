"""What a client of the explorer does with the machines: the part of ``locking.manager`` and ``locking.renewal``.

Those block, so the explorer can't run them; what they decide is repeated here as far as it bears on the properties:
belief begins with ``Acquired`` and ends with the release, the session's deadline or its loss; a doubtful lock is
released by ``Resolve``; what got no answer becomes a debt, which the keeper pays; an attempt on a lost session opens
another. A parent that renews for its child (``locking.child_lease_guardian``) knows of it only its lease and until when
that is trusted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from celery_etcdlock.core import protocol
from celery_etcdlock.core.operations import (
    AwaitChange,
    CheckKeys,
    HeldKey,
    KeepAlive,
    Operation,
    Pause,
    Release,
)
from celery_etcdlock.core.protocol import (
    Acquired,
    Conflicted,
    Machine,
    Opened,
    Renewed,
    Resolved,
    SessionLost,
    Unavailable,
)
from celery_etcdlock.core.replies import (
    Changed,
    EpochMoved,
    Failed,
    Reply,
    SessionFenced,
)
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.child_lease_guardian import LATE
from tests.model.codec import Codec
from tests.model.without_renewal import WithoutRenewal
from tests.model.world import (
    CLAIM,
    NAME,
    Client,
    Frozen,
    Held,
    Lane,
    PendingDelete,
    Plan,
    Scenario,
    Session,
    Violation,
    World,
    lease_of,
    mark_of,
    on_shared,
)

__all__ = ["Clients", "local", "session_stands", "trust_ends", "trusts"]

UNSENT = Failed(LockUnavailable("no time left"))


def local(world: World, plan: Plan) -> float:
    """The client's clock."""
    return world.etcd.now * plan.rate


def trust_ends(client: Client) -> float:
    """Until when the client trusts its session, by its own renewals or its parent's, on its own clock."""
    assert client.session is not None
    lease, vouched = client.vouched
    return max(client.session.deadline, vouched if lease == client.session.lease else 0.0)


def session_stands(world: World, client: Client, plan: Plan) -> bool:
    session = client.session
    return session is not None and not session.lost and local(world, plan) < trust_ends(client)


def trusts(world: World, client: Client, plan: Plan) -> bool:
    """Whether the client believes now that it owns the lock."""
    return client.alive and client.held is not None and session_stands(world, client, plan)


class Clients(WithoutRenewal):
    def __init__(self, scenario: Scenario, codec: Codec) -> None:
        self.scenario = scenario
        self.codec = codec

    # --- lanes ----------------------------------------------------------------------------------------------------

    def launch(self, world: World, index: int, lane: str, purpose: str, machine: Machine[Any]) -> World:
        """Start a machine in a lane."""
        return self._emit(world, index, lane, purpose, machine, machine.start(self._now(world, index)))

    def deliver(self, world: World, index: int, lane: str, reply: Reply) -> World:
        """Give a machine its reply and send what it asks for next."""
        client = world.clients[index]
        running: Lane = getattr(client, lane)
        if isinstance(reply, SessionFenced | EpochMoved):
            which = "shared" if running.shared else "session"
            session: Session | None = getattr(client, which)
            if session is not None:
                session = session._replace(epoch=max(session.epoch, reply.epoch))
                world = world.with_client(index, client._replace(**{which: session}))
        machine = running.machine.thaw()
        step = machine.on(reply, self._now(world, index))
        return self._emit(world, index, lane, running.purpose, machine, step, running)

    def _emit(
        self,
        world: World,
        index: int,
        lane: str,
        purpose: str,
        machine: Machine[Any],
        step: Any,
        before: Lane | None = None,
    ) -> World:
        now = self._now(world, index)
        while isinstance(step, Operation):
            if isinstance(step, Pause):
                step = machine.on(Changed(), now)
            elif machine.answer_by - now <= 0:
                step = machine.on(UNSENT, now)
            else:
                break
        client = world.clients[index]
        if not isinstance(step, Operation):
            world = world.with_client(index, client._replace(**{lane: None}))
            return getattr(self, f"_after_{purpose}")(world, index, step, before)  # type: ignore[no-any-return]
        assert not isinstance(step, Pause)
        path, request, _ = self.codec.encode(step)
        gone = None if before is None else before.gone
        if isinstance(step, KeepAlive):
            gone = None if client.held is None or _key_stands(world, client.held) else client.held.fencing_token
        answer_by = min(machine.answer_by, now + 15.0) if isinstance(step, AwaitChange) else machine.answer_by
        shared = client.shared is not None and lease_of(step) == client.shared.lease
        began_at = 0.0
        if purpose in ("claim", "place", "keep"):
            began_at = world.etcd.now if before is None else before.began_at
        running = Lane(purpose, Frozen(machine), step, path, request, answer_by, now, None, gone, shared, began_at)
        return world.with_client(index, client._replace(**{lane: running}))

    def main_session_stands(self, world: World, index: int) -> bool:
        return session_stands(world, world.clients[index], self.scenario.plans[index])

    def _now(self, world: World, index: int) -> float:
        return local(world, self.scenario.plans[index])

    # --- the main lane --------------------------------------------------------------------------------------------

    def begin(self, world: World, index: int) -> World:
        """Begin the next attempt, if there is one, on a session that stands."""
        client, plan = world.clients[index], self.scenario.plans[index]
        if client.attempt >= len(plan.attempts) or world.etcd.now < plan.not_before:
            return world
        if client.position is not None:
            return world
        if plan.attempts[client.attempt].without_renewal:
            return self.put_without_renewal(world, index)
        if not session_stands(world, client, plan):
            if client.sessions >= plan.sessions or (client.session is not None and client.keeper is not None):
                return world
            return self.open(world, index)
        now = self._now(world, index)
        attempt = plan.attempts[client.attempt]
        token = client.spare or f"{'abc'[index]}{client.attempt}"
        assert client.session is not None
        give_up_at = now + self.scenario.answer_seconds * 0.75
        if attempt.takes_over:
            client = client._replace(attempt=client.attempt + 1)
            return self.take_over(world.with_client(index, client), index, CLAIM, world.claim)
        machine = protocol.Acquire(
            lease=client.session.lease,
            epoch=client.session.epoch,
            name=NAME,
            token=token,
            record=self.record(index),
            give_up_at=give_up_at,
            deadline=now + self.scenario.answer_seconds,
            wait_until=None if attempt.wait_seconds is None else now + attempt.wait_seconds,
            answer_seconds=self.scenario.answer_seconds,
            wall_offset=plan.wall,
        )
        client = client._replace(
            attempt=client.attempt + 1,
            token=token,
            spare="",
            floor=world.ended,
            give_up_at=give_up_at,
            excused=False,
            mark=None,
        )
        return self.launch(world.with_client(index, client), index, "main", "acquire", machine)

    def take_over(self, world: World, index: int, token: str, revision: int) -> World:
        client = world.clients[index]
        assert client.session is not None
        give_up_at = self._now(world, index) + self.scenario.answer_seconds * 0.75
        mark = mark_of(index, client)
        machine = protocol.TakeOver(
            lease=client.session.lease,
            epoch=client.session.epoch,
            name=NAME,
            token=token,
            record=replace(self.record(index), attempt=mark),
            mod_revision=revision,
            give_up_at=give_up_at,
            deadline=self._now(world, index) + self.scenario.answer_seconds,
        )
        client = client._replace(
            token=token,
            floor=world.ended,
            give_up_at=give_up_at,
            excused=False,
            tries=client.tries + 1,
            mark=mark,
            position=None,
        )
        return self.launch(world.with_client(index, client), index, "main", "acquire", machine)

    def open(self, world: World, index: int) -> World:
        client = world.clients[index]
        lease = 16 * (index + 1) + client.sessions
        session = Session(lease, 0, -1.0, lost=True)
        pending_deletes = on_shared(client)
        client = client._replace(
            sessions=client.sessions + 1, session=session, pending_deletes=pending_deletes, token="", held=None
        )
        machine = protocol.Open(
            lease=lease,
            ttl_seconds=self.scenario.ttl_seconds,
            deadline=self._now(world, index) + self.scenario.answer_seconds,
        )
        return self.launch(world.with_client(index, client), index, "main", "open", machine)

    def _after_open(self, world: World, index: int, outcome: Any, lane: Lane) -> World:
        client = world.clients[index]
        if not isinstance(outcome, Opened):
            return self.begin(world, index)
        assert client.session is not None
        session = Session(client.session.lease, outcome.epoch, outcome.deadline)
        return self.begin(world.with_client(index, client._replace(session=session)), index)

    def _after_acquire(self, world: World, index: int, outcome: Any, lane: Lane) -> World:
        client, plan = world.clients[index], self.scenario.plans[index]
        assert client.session is not None
        if isinstance(outcome, Acquired):
            held = Held(client.token, outcome.fencing_token, outcome.doubtful)
            if session_stands(world, client, plan):
                return self._believe(world, index, held)
            machine = self._resolve(world, index, PendingDelete(client.token, attempt=client.mark))
            return self.launch(world, index, "main", "settle", machine)
        if isinstance(outcome, Conflicted):
            if any(key.token == client.token for key in outcome.keys):
                raise Violation("token check", f"{client.token} is in conflict with itself")
            if not outcome.keys and not world.interfered:
                raise Violation("free lock taken", f"{client.token} is in conflict with nobody")
        if isinstance(outcome, Unavailable) and not outcome.error.permanent:
            attempt = plan.attempts[client.attempt - 1]
            if attempt.wait_seconds is None and self._now(world, index) < client.give_up_at:
                raise Violation("token check", f"{client.token} gave up on a lock before its time was over")
        pending_deletes = client.pending_deletes
        if isinstance(outcome, Unavailable) and outcome.doubtful:
            pending_deletes = (*pending_deletes, PendingDelete(client.token, attempt=client.mark))
        lost = client.session.lost or isinstance(outcome, SessionLost)
        client = _spared(client, outcome)
        client = client._replace(session=client.session._replace(lost=lost), pending_deletes=pending_deletes, token="")
        return self.begin(world.with_client(index, client), index)

    def _believe(self, world: World, index: int, held: Held) -> World:
        fence = held.fencing_token
        if world.clients[index].excused:
            return world.with_client(index, world.clients[index]._replace(held=held))
        if fence in world.fences:
            raise Violation("P3", f"{held.token} owns the lock with fencing token {fence}, which was given before")
        above = max(world.fences, default=0) if self.scenario.limit == 1 else world.clients[index].floor
        if fence <= above:
            raise Violation("P3", f"{held.token} owns the lock with {fence} after somebody had {above}")
        client = world.clients[index]._replace(held=held)
        return world.with_client(index, client)._replace(fences=world.fences | {fence})

    def finish(self, world: World, index: int) -> World:
        """The body is over: release."""
        client, plan = world.clients[index], self.scenario.plans[index]
        held = client.held
        assert held is not None
        assert client.session is not None
        world = world._replace(ended=max(world.ended, held.fencing_token))
        stands = session_stands(world, client, plan)
        client = client._replace(held=None)
        if not stands:
            lost = client._replace(token="", session=client.session._replace(lost=True))
            return self.begin(world.with_client(index, lost), index)
        world = world.with_client(index, client)
        if held.doubtful:
            machine = self._resolve(world, index, PendingDelete(held.token, attempt=client.mark))
            return self.launch(world, index, "main", "release", machine)
        answer_by = self._now(world, index) + self.scenario.answer_seconds
        release = protocol.ReleaseKey(name=NAME, token=held.token, mod_revision=held.fencing_token, deadline=answer_by)
        return self.launch(world, index, "main", "release", release)

    def _after_release(self, world: World, index: int, outcome: Any, lane: Lane) -> World:
        client = world.clients[index]
        if isinstance(outcome, Unavailable):
            doubtful = isinstance(lane.machine.machine, protocol.Resolve)
            guard = None if doubtful or not isinstance(lane.operation, Release) else lane.operation.mod_revision
            debt = PendingDelete(client.token, guard, client.mark if guard is None else None)
            client = client._replace(pending_deletes=(*client.pending_deletes, debt))
        client = _spared(client, outcome)
        return self.begin(world.with_client(index, client._replace(token="")), index)

    def _after_settle(self, world: World, index: int, outcome: Any, lane: Lane) -> World:
        client = world.clients[index]
        assert client.session is not None
        session = client.session._replace(lost=True)
        return self.begin(world.with_client(index, client._replace(token="", session=session)), index)

    def _resolve(self, world: World, index: int, debt: PendingDelete) -> protocol.Resolve:
        client = world.clients[index]
        session = client.shared if debt.shared else client.session
        assert session is not None
        answer_by = self._now(world, index) + self.scenario.answer_seconds
        return protocol.Resolve(
            lease=session.lease, name=NAME, token=debt.token, deadline=answer_by, attempt=debt.attempt
        )

    # --- the keeper lane --------------------------------------------------------------------------------------------

    def renew(self, world: World, index: int) -> World:
        client = world.clients[index]
        assert client.session is not None
        held = client.held
        keys = () if held is None else (HeldKey(NAME, held.token, held.fencing_token),)
        answer_by = min(client.session.deadline, self._now(world, index) + self.scenario.ttl_seconds / 4)
        machine = protocol.Renew(lease=client.session.lease, keys=keys, deadline=answer_by)
        world = world.with_client(index, client._replace(renewals=client.renewals - 1))
        return self.launch(world, index, "keeper", "renew", machine)

    def _after_renew(self, world: World, index: int, outcome: Any, lane: Lane) -> World:
        client, plan = world.clients[index], self.scenario.plans[index]
        session = client.session
        assert session is not None
        if isinstance(outcome, SessionLost):
            return world.with_client(index, client._replace(session=session._replace(lost=True)))
        if isinstance(outcome, Unavailable):
            return world
        assert isinstance(outcome, Renewed)
        if not session_stands(world, client, plan):
            return world.with_client(index, client._replace(session=session._replace(lost=True)))
        held = client.held
        if held is not None and HeldKey(NAME, held.token, held.fencing_token) in outcome.missing:
            world = world._replace(ended=max(world.ended, held.fencing_token))
            client = client._replace(held=None, token="")
            world = world.with_client(index, client)
        elif held is not None and lane.gone == held.fencing_token:
            raise Violation("rule 9", f"{held.token} was renewed although its key was gone before")
        session = session._replace(deadline=max(session.deadline, outcome.deadline))
        world = world.with_client(index, client._replace(session=session))
        return self.begin(world, index) if client.main is None and client.held is None else world

    # --- the guardian lane ------------------------------------------------------------------------------------------

    def may_guard(self, world: World, index: int) -> bool:
        """Whether the child is late, by what it wrote on the page."""
        client = world.clients[index]
        if client.guardian is not None or not client.guards or client.session is None:
            return False
        now = self._now(world, index)
        return now < trust_ends(client) < now + self.scenario.ttl_seconds * LATE

    def guard(self, world: World, index: int) -> World:
        client = world.clients[index]
        assert client.session is not None
        answer_by = min(trust_ends(client), self._now(world, index) + self.scenario.ttl_seconds / 8)
        machine = protocol.Renew(lease=client.session.lease, keys=(), deadline=answer_by)
        world = world.with_client(index, client._replace(guards=client.guards - 1))
        return self.launch(world, index, "guardian", "guard", machine)

    def _after_guard(self, world: World, index: int, outcome: Any, lane: Lane) -> World:
        if not isinstance(outcome, Renewed):
            return world
        assert isinstance(lane.operation, CheckKeys | KeepAlive)
        vouched = (lane.operation.lease, outcome.deadline)
        return world.with_client(index, world.clients[index]._replace(vouched=vouched))

    # --- what is owed -----------------------------------------------------------------------------------------------

    def flush(self, world: World, index: int) -> World:
        client = world.clients[index]
        debt = client.pending_deletes[0]
        answer_by = self._now(world, index) + 1.0
        machine: Machine[Any]
        if debt.guard is None:
            machine = self._resolve(world, index, debt)
        else:
            machine = protocol.ReleaseKey(name=NAME, token=debt.token, mod_revision=debt.guard, deadline=answer_by)
        return self.launch(world, index, "keeper", "pay", machine)

    def _after_pay(self, world: World, index: int, outcome: Any, lane: Lane) -> World:
        client = world.clients[index]
        if isinstance(outcome, Resolved | protocol.Released):
            return world.with_client(index, client._replace(pending_deletes=client.pending_deletes[1:]))
        return world


def ended_without_doubt(outcome: object) -> bool:
    """Whether the token has no key, and none can come: then the next attempt may have it (``locking.key_tokens``)."""
    return isinstance(outcome, Conflicted) or (isinstance(outcome, protocol.Released) and outcome.was_held)


def _spared(client: Client, outcome: object) -> Client:
    # Others know of a token that was handed over.
    others_know = client.token == CLAIM or client.mark is not None
    return client._replace(spare=client.token) if not others_know and ended_without_doubt(outcome) else client


def _key_stands(world: World, held: Held) -> bool:
    """The held key is on the server as its owner wrote it."""
    return any(kv.mod == held.fencing_token and kv.key.endswith(b"/" + held.token.encode()) for kv in world.etcd.kvs)
