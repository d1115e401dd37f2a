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
from celery_etcdlock.core.ownership import Key, find_key, leave_room, owns, preceding
from celery_etcdlock.core.record import KeyKind
from celery_etcdlock.locking.outcomes import Claim, Conflict
from celery_etcdlock.tasks.execution.context import ExecutionContext
from celery_etcdlock.tasks.execution.held_locks import HeldLocks
from celery_etcdlock.tasks.execution.message_claims import end_if_superseded

logger = logging.getLogger("celery_etcdlock")

#: Seconds for which a queue position lasts after its message is due.
POSITION_SECONDS = 60.0


def try_turn(context: ExecutionContext, held: HeldLocks, name: str) -> Conflict | None:
    """Take the lock if it is our turn, or say who is before us. Raises ``LockUnavailable``."""
    call = context.call
    keys = context.manager.claims.look(name)
    mine = take_up(context, name, keys)
    if mine is None:
        end_if_superseded(context, name)
        # It expired, or a copy of the message had its turn: take a new one.
        call.position = None
        return held.acquire([name])
    before = preceding(keys, mine.create_revision)
    related_key = find(keys, call.delivery, Relation.KIN)
    if related_key is not None and context.options.lock_limit > 1:
        return Conflict(name, (related_key,))  # a free place isn't for a second run of one message
    if not leave_room(before, context.options.lock_limit):
        return Conflict(name, tuple(before))
    conflict = held.take_over(Claim(name, mine.token, mine.mod_revision))
    if conflict is None:
        call.position = None
    return conflict


def take_up(context: ExecutionContext, name: str, keys: Sequence[Key]) -> Key | None:
    """Wait with the position that is among ``keys``, all under ``name``, if there is one of ours."""
    mine = find(keys, context.call.delivery, Relation.OUR_POSITION)
    if mine is not None:
        context.call.position = Claim(name, mine.token, mine.mod_revision)
    return mine


def take_position(context: ExecutionContext, conflict: Conflict, decision: Reschedule) -> bool:
    """Take a position, extend ours, or give it up: as the policy says. Raises ``LockUnavailable``.

    Returns whether the lock came free while we took it.
    """
    call, claims, facts = context.call, context.manager.claims, decision.facts
    claim = call.position

    def stand(taken: Claim) -> None:
        call.position = taken

    if facts.replaces and conflict.keys and (claim is not None or not call.delivery.comebacks):
        # Whoever has the lock came before us: one that came later would have taken our place.
        asked_by = f"task {call.delivery.task_id}, which replaces it,"
        context.manager.ask_to_release(conflict.name, conflict.keys[0], asked_by)
    if not (facts.in_order and context.lifetime.while_running and len(context.names()) == 1):
        leave_queue(context)
        return False
    stands_for = decision.seconds + POSITION_SECONDS
    if claim is not None:
        kept = claims.keep(claim, replace(context.record, kind=KeyKind.POSITION), stands_for)
        if isinstance(kept, Claim):
            call.position = kept
            return False
        if take_up(context, claim.name, kept.keys) is not None:
            return False  # a copy of the message, or its worker, has kept it meanwhile
        end_if_superseded(context, claim.name)
        call.position = None
    keys: Sequence[Key] = ()
    if facts.replaces:
        _replace_those_who_wait(context, conflict.name, claims.look(conflict.name), stands_for)
        if call.position is not None:
            keys = claims.look(conflict.name)
    if call.position is None:
        taken, keys = claims.take_position(conflict.name, context.record, stands_for, stand)
        call.position = taken
        mine = find_key(keys, taken.token)
        if facts.replaces and mine is not None:
            # One that took its place while we took ours.
            before = preceding(keys, mine.create_revision)
            _replace_those_who_wait(context, conflict.name, before, stands_for)
    return owns(keys, call.position.token, context.options.lock_limit)


def _replace_those_who_wait(context: ExecutionContext, name: str, keys: Sequence[Key], stands_for: float) -> None:
    """Take the place of an earlier call of this task that waits. None of them runs any more."""
    call = context.call
    for key in keys:
        older = key.record
        if older is None or not is_position(key) or not older.is_of_task(context.task.name):
            continue
        if older.delivery.task_id == call.delivery.task_id:
            continue
        claim = Claim(name, key.token, key.mod_revision)
        record = replace(context.record, kind=KeyKind.POSITION)
        taken = context.manager.claims.keep(claim, record, stands_for, replaces=older.delivery.task_id)
        if isinstance(taken, Claim):
            logger.info("%s takes the queue position of %s", call.delivery.task_id, older.delivery.task_id)
            leave_queue(context)  # ours is behind it
            call.position = taken


def leave_queue(context: ExecutionContext) -> None:
    """Give the position up. Raises no error of the store."""
    call = context.call
    if call.position is not None:
        context.manager.drop_ended(call.position.name, call.delivery, position_only=True)
        call.position = None
