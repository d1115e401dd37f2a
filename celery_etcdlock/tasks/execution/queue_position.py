"""The queue position of a message that waits for its lock, while the message is back in its queue.

It is a key that nobody renews, and lasts a while longer than the message's delay. The first of the keys that are left
owns the lock (rule 2). The message's headers say where to look, and the key says whose it is. So a position that got no
answer, or that a copy of the message extended, is found as well. One that is gone is replaced by a new one at the end.

Where the newest call wins (``replace``), it takes the position of an earlier call of the task that waits, and that one
ends. So at most one of them waits, and the one that runs is asked to release.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from celery_etcdlock.core.conflict_decision import Reschedule
from celery_etcdlock.core.key_kinds import Relation, find, is_position
from celery_etcdlock.core.ownership import Key, leave_room, preceding
from celery_etcdlock.core.record import KeyKind, MessageRelation
from celery_etcdlock.locking.outcomes import Claim, Conflict
from celery_etcdlock.tasks.execution.context import ExecutionContext
from celery_etcdlock.tasks.execution.held_locks import HeldLocks
from celery_etcdlock.tasks.execution.message_claims import end_if_superseded

logger = logging.getLogger("celery_etcdlock")

#: Seconds for which a queue position lasts after its message is due.
POSITION_SECONDS = 60.0


class QueuePosition:
    """``claim`` is the message's position, or ``None``. Raises ``LockUnavailable``."""

    def __init__(self, context: ExecutionContext, held: HeldLocks) -> None:
        self._context = context
        self._held = held
        self._keys: tuple[Key, ...] = ()
        self.claim = context.call.position

    def try_turn(self, claim: Claim) -> Conflict | None:
        """Take the lock if it is our turn, or say who is before us."""
        keys = self._context.manager.claims.look(claim.name)
        if not self.take_up(claim.name, keys):
            end_if_superseded(self._context, claim.name)
            # It expired, or a copy of the message had its turn: take a new one.
            self.claim = None
            return self._held.acquire([claim.name])
        before = self._before(keys)
        related_key = find(keys, self._context.call.delivery, Relation.KIN)
        if related_key is not None and self._context.options.lock_limit > 1:
            return Conflict(claim.name, (related_key,))  # a free place isn't for a second run of one message
        if not leave_room(before, self._context.options.lock_limit):
            return Conflict(claim.name, tuple(before))
        conflict = self._held.take_over(self.claim or claim)
        if conflict is None:
            self.claim = None
        return conflict

    def take_up(self, name: str, keys: Sequence[Key]) -> bool:
        """Wait with the position that is among ``keys``, all under ``name``. Returns whether there is one of ours."""
        mine = find(keys, self._context.call.delivery, Relation.OUR_POSITION)
        if mine is not None:
            self.claim = Claim(name, mine.token, mine.mod_revision)
        return mine is not None

    def _before(self, keys: Sequence[Key]) -> list[Key]:
        """What precedes our position among ``keys``."""
        mine = next(key for key in keys if self.claim is not None and key.token == self.claim.token)
        return preceding(keys, mine.create_revision)

    def take_position(self, conflict: Conflict, decision: Reschedule) -> None:
        """Take a position, extend ours, or give it up: as the policy says."""
        context, claim = self._context, self.claim
        self._keys = ()
        if decision.replaces and conflict.keys and (claim is not None or not context.call.delivery.comebacks):
            # Whoever has the lock came before us: one that came later would have taken our place.
            asked_by = f"task {context.call.delivery.task_id}, which replaces it,"
            context.manager.ask_to_release(conflict.name, conflict.keys[0], asked_by)
        if not (decision.with_position and context.lifetime.while_running and len(context.names()) == 1):
            self.leave()
            return
        claims = context.manager.claims
        stands_for = decision.seconds + POSITION_SECONDS
        if claim is not None:
            kept = claims.keep(claim, replace(context.record, kind=KeyKind.POSITION), stands_for)
            if isinstance(kept, Claim):
                self.claim = kept
                return
            if self.take_up(claim.name, kept.keys):
                return  # a copy of the message, or its worker, has kept it meanwhile
            end_if_superseded(context, claim.name)
            self.claim = None
        if decision.replaces:
            self._replace_those_who_wait(conflict.name, claims.look(conflict.name), stands_for)
            if self.claim is not None:
                self._keys = claims.look(conflict.name)
                return
        _, self._keys = claims.take_position(conflict.name, context.record, stands_for, self._stand)
        if decision.replaces:
            # One that took its place while we took ours.
            self._replace_those_who_wait(conflict.name, self._before(self._keys), stands_for)

    def _replace_those_who_wait(self, name: str, keys: Sequence[Key], stands_for: float) -> None:
        """Take the place of an earlier call of this task that waits. None of them runs any more."""
        context = self._context
        for key in keys:
            older = key.record
            if older is None or not is_position(key) or not older.is_of_task(context.task.name):
                continue
            if context.message_relation(key) is not MessageRelation.STRANGER:
                continue
            claim = Claim(name, key.token, key.mod_revision)
            record = replace(context.record, kind=KeyKind.POSITION)
            taken = context.manager.claims.keep(claim, record, stands_for, replaces=older.delivery.task_id)
            if isinstance(taken, Claim):
                logger.info("%s takes the queue position of %s", context.call.delivery.task_id, older.delivery.task_id)
                self.leave()  # ours is behind it
                self.claim = taken

    def is_our_turn(self) -> bool:
        """Whether the lock came free while we took our position."""
        token = None if self.claim is None else self.claim.token
        is_ours = any(key.token == token for key in self._keys)
        return is_ours and leave_room(self._before(self._keys), self._context.options.lock_limit)

    def leave(self) -> None:
        """Give the position up. Raises no error of the store."""
        if self.claim is not None:
            self._context.manager.drop_ended(self.claim.name, self._context.call.delivery, position_only=True)
            self.claim = None

    def _stand(self, claim: Claim) -> None:
        self.claim = claim
