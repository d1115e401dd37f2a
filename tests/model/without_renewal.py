"""What a client does with keys that stand without renewal: the part of ``locking.claims`` and
``tasks.execution.queue_position``.

A *window* is put by ``AcquireEach`` and left to its end. A *queue position* is put by ``TakePosition``; its message
comes back now and then, looks (``LookAt``), and takes the position over when few enough precede, or keeps it for
longer. A *copy* of that message comes back with the same position. Their ends are written as production writes them, by
the client's own wall clock and by the age of its lease that isn't renewed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery_etcdlock.core import protocol
from celery_etcdlock.core.expiry import ending
from celery_etcdlock.core.key_kinds import Relation, find
from celery_etcdlock.core.operations import TryAcquire
from celery_etcdlock.core.ownership import owns
from celery_etcdlock.core.protocol import (
    Acquired,
    EachAcquired,
    Machine,
    Opened,
    PositionTaken,
    Refused,
    Seen,
    SessionLost,
    Unavailable,
)
from celery_etcdlock.core.record import KeyKind, Record
from tests.model.world import (
    CLAIM,
    NAME,
    Client,
    Lane,
    PendingDelete,
    Scenario,
    Session,
    Standing,
    World,
    mark_of,
    record_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WithoutRenewal"]

#: The part of the time for an answer that is spent on trying.
TRYING = 0.75


class WithoutRenewal:
    """Part of ``clients.Clients``."""

    scenario: Scenario

    if TYPE_CHECKING:
        launch: Callable[[World, int, str, str, Machine[Any]], World]
        begin: Callable[[World, int], World]
        take_over: Callable[[World, int, str, int], World]
        main_session_stands: Callable[[World, int], bool]
        _now: Callable[[World, int], float]

    def record(self, index: int) -> Record:
        plan = self.scenario.plans[index]
        record = record_of(index, plan.limit or self.scenario.limit)
        is_copy = any(attempt.copies for attempt in plan.attempts)
        return replace(record, delivery=record_of(0, 1).delivery) if is_copy else record

    # --- the lease --------------------------------------------------------------------------------------------------

    def share(self, world: World, index: int) -> World:
        """Open the session on a lease that isn't renewed."""
        lease = 16 * (index + 1) + 8
        world = world.with_client(index, world.clients[index]._replace(shared=Session(lease, 0, -1.0, lost=True)))
        machine = protocol.Open(
            lease=lease,
            ttl_seconds=self.scenario.shared_ttl_seconds,
            deadline=self._now(world, index) + self.scenario.answer_seconds,
        )
        return self.launch(world, index, "main", "share", machine)

    def _after_share(self, world: World, index: int, outcome: Any, lane: Lane) -> World:
        client = world.clients[index]
        if not isinstance(outcome, Opened):
            return world.with_client(index, client._replace(attempt=client.attempt + 1))
        assert client.shared is not None
        shared = Session(
            client.shared.lease, outcome.epoch, outcome.deadline, opened_at=outcome.opened_at, term=outcome.term
        )
        return self.begin(world.with_client(index, client._replace(shared=shared)), index)

    # --- putting a key ----------------------------------------------------------------------------------------------

    def put_without_renewal(self, world: World, index: int) -> World:
        client, plan = world.clients[index], self.scenario.plans[index]
        attempt = plan.attempts[client.attempt]
        if attempt.copies:
            if not world.claim:
                return world
            position = Standing(CLAIM, world.claim, 0.0)
            client = client._replace(attempt=client.attempt + 1, position=position, returns=1, token=CLAIM)
            return self.reschedule(world.with_client(index, client), index)
        if client.shared is None or client.shared.lost:
            return self.share(world, index)
        now = self._now(world, index)
        has_copies = any(each.copies for other in self.scenario.plans for each in other.attempts)
        token = CLAIM if has_copies else f"{'abc'[index]}{client.attempt}"
        client = client._replace(
            attempt=client.attempt + 1,
            token=token,
            tries=client.tries + 1,
            mark=mark_of(index, client),
            returns=attempt.comes_back,
        )
        world = world.with_client(index, client)
        record = self._ending(world, index, attempt.stands_for, attempt.comes_back > 0)
        times = {
            "give_up_at": now + self.scenario.answer_seconds * TRYING,
            "deadline": now + self.scenario.answer_seconds,
        }
        assert client.shared is not None
        lease, epoch = client.shared.lease, client.shared.epoch
        if attempt.comes_back:
            place = protocol.TakePosition(lease=lease, epoch=epoch, name=NAME, token=token, record=record, **times)
            return self.launch(world, index, "main", "place", place)
        tries = (TryAcquire(lease, epoch, NAME, token, record),)
        claim = protocol.AcquireEach(tries, epoch=epoch, wall_offset=plan.wall or 0.0, **times)
        return self.launch(world, index, "main", "claim", claim)

    def _ending(self, world: World, index: int, seconds: float, in_line: bool) -> Record:
        client, plan = world.clients[index], self.scenario.plans[index]
        assert client.shared is not None
        kind = KeyKind.POSITION if in_line else KeyKind.WINDOW
        return ending(
            replace(self.record(index), kind=kind),
            client.mark,
            seconds,
            now=self._now(world, index),
            wall_offset=plan.wall or 0.0,
            opened_at=client.shared.opened_at,
            term=client.shared.term,
        )

    def _after_claim(self, world: World, index: int, outcome: Any, lane: Lane) -> World:
        client = self._owing(world.clients[index], outcome)
        if isinstance(outcome, EachAcquired):
            (each,) = outcome.outcomes
            if isinstance(each, Acquired):
                client = client._replace(window=self._standing(world, index, each.fencing_token, lane))
        return self.begin(world.with_client(index, client._replace(token="")), index)

    def _after_place(self, world: World, index: int, outcome: Any, lane: Lane) -> World:
        client = self._owing(world.clients[index], outcome)
        if not isinstance(outcome, PositionTaken):
            return self.begin(world.with_client(index, client._replace(token="")), index)
        return self._has_position(world.with_client(index, client), index, outcome.mod_revision, lane)

    def _has_position(self, world: World, index: int, revision: int, lane: Lane) -> World:
        position = self._standing(world, index, revision, lane)
        world = world.with_client(index, world.clients[index]._replace(position=position))
        return world._replace(claim=revision) if position.token == CLAIM else world

    def _standing(self, world: World, index: int, revision: int, lane: Lane) -> Standing:
        """The key that this lane has put or rewritten: it stands for so long since the lane began."""
        client = world.clients[index]
        attempt = next(each for each in self.scenario.plans[index].attempts if each.without_renewal)
        return Standing(client.token, revision, lane.began_at + attempt.stands_for)

    @staticmethod
    def _owing(client: Client, outcome: Any) -> Client:
        if isinstance(outcome, SessionLost):
            return client._replace(
                shared=None, pending_deletes=tuple(debt for debt in client.pending_deletes if not debt.shared)
            )
        if isinstance(outcome, Unavailable) and outcome.doubtful:
            return client._replace(
                pending_deletes=(*client.pending_deletes, PendingDelete(client.token, None, client.mark, True))
            )
        return client

    # --- coming back for it -----------------------------------------------------------------------------------------

    def reschedule(self, world: World, index: int) -> World:
        client, plan = world.clients[index], self.scenario.plans[index]
        assert client.position is not None
        world = world.with_client(index, client._replace(returns=client.returns - 1, token=client.position.token))
        deadline = self._now(world, index) + self.scenario.answer_seconds
        machine = protocol.LookAt(name=NAME, deadline=deadline, wall_offset=plan.wall or 0.0)
        return self.launch(world, index, "main", "look", machine)

    def _after_look(self, world: World, index: int, outcome: Any, lane: Lane) -> World:
        client, plan = world.clients[index], self.scenario.plans[index]
        if not isinstance(outcome, Seen):
            return world
        mine = find(outcome.keys, self.record(index).delivery, Relation.OUR_POSITION)
        if mine is None:
            return self.begin(world.with_client(index, client._replace(position=None, token="")), index)
        limit = plan.limit or self.scenario.limit
        if owns(outcome.keys, mine.token, limit) and self.main_session_stands(world, index):
            return self.take_over(world, index, mine.token, mine.mod_revision)
        return self._keep(world, index, mine.mod_revision)

    def _keep(self, world: World, index: int, revision: int) -> World:
        """Have the position stand for longer. A copy that knows no lease of its own leaves it as it is."""
        client, plan = world.clients[index], self.scenario.plans[index]
        if client.shared is None:
            return self.begin(world.with_client(index, client._replace(position=None, token="")), index)
        mark = mark_of(index, client)
        client = client._replace(tries=client.tries + 1, mark=mark)
        world = world.with_client(index, client)
        now = self._now(world, index)
        attempt = next(each for each in plan.attempts if each.comes_back)
        assert client.shared is not None
        machine = protocol.TakeOver(
            lease=client.shared.lease,
            epoch=client.shared.epoch,
            name=NAME,
            token=client.token,
            record=self._ending(world, index, attempt.stands_for, True),
            mod_revision=revision,
            give_up_at=now + self.scenario.answer_seconds * TRYING,
            deadline=now + self.scenario.answer_seconds,
        )
        return self.launch(world, index, "main", "keep", machine)

    def _after_keep(self, world: World, index: int, outcome: Any, lane: Lane) -> World:
        client = self._owing(world.clients[index], outcome)
        world = world.with_client(index, client)
        if isinstance(outcome, Acquired):
            return self._has_position(world, index, outcome.fencing_token, lane)
        if isinstance(outcome, Refused | SessionLost):
            return self.begin(world.with_client(index, client._replace(position=None, token="")), index)
        return world
