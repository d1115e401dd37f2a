"""The locks that were taken for a message when it was published: taken over, or released where they end with the start.

The message's headers say under which names to look, and the keys there say what they are (``core.key_kinds``). So a
claim is found although its producer never got an answer, and a key of another message, or of another run of this one,
is left alone. A claim that is gone has expired, or a copy of the message took it over, or a newer call took its place.
Only then this one mustn't run.

All functions raise ``LockUnavailable``, and what ``skip`` raises.
"""

from __future__ import annotations

from celery_etcdlock.core.key_kinds import Relation, find, relation
from celery_etcdlock.locking.outcomes import Claim
from celery_etcdlock.tasks.execution.context import ExecutionContext
from celery_etcdlock.tasks.execution.held_locks import HeldLocks
from celery_etcdlock.tasks.execution.skip_or_reschedule import skip

#: How often to look again for a claim that changed between the look and the release.
MOST_LOOKS = 3


def check_claims(context: ExecutionContext) -> None:
    """End the message if a newer call took its place while it was in its queue."""
    for claim in context.call.claims:
        keys = context.manager.claims.look(claim.name)
        if find(keys, context.call.delivery, Relation.OURS) is None:
            end_if_superseded(context, claim.name)


def release_claims(context: ExecutionContext) -> None:
    """Release what ends with the start of this run, whether the headers name it or not."""
    claims = context.manager.claims
    # Where the lifetime doesn't begin at the call, only the headers of an earlier version can name any.
    names = [context.lifetime.queued_name(name) for name in context.names()] if context.lifetime.at_enqueue else []
    claimed = {claim.name for claim in context.call.claims}
    for name in dict.fromkeys((*names, *claimed)):
        for _ in range(MOST_LOOKS):
            related = ((key, relation(key.record, context.call.delivery)) for key in claims.look(name))
            ours = [key for key, kind in related if kind in (Relation.OURS, Relation.LEFT_BEHIND)]
            if not ours and name in claimed:
                end_if_superseded(context, name)
            if all(claims.drop(Claim(name, key.token, key.mod_revision)) for key in ours):
                break
    context.call.claims = ()


def take_over_claims(context: ExecutionContext, held: HeldLocks) -> bool:
    """Take over the keys of this run, and acquire the rest of the task's locks. All of them, or none."""
    names = context.names()
    claimed = {claim.name for claim in context.call.claims}
    for name in dict.fromkeys((*names, *claimed)):
        key = find(context.manager.claims.look(name), context.call.delivery, Relation.OURS)
        if key is not None and name in names:
            held.take_over(Claim(name, key.token, key.mod_revision))
        elif key is not None:
            # Of other arguments than the message has now.
            context.manager.claims.drop(Claim(name, key.token, key.mod_revision))
        elif name in claimed:
            end_if_superseded(context, name)
    context.call.claims = ()
    missing = [name for name in names if name not in held.names]
    if not missing:
        return True
    if len(missing) < len(names):
        if held.acquire(missing) is None:
            return True
        held.release()
    return False


def end_if_superseded(context: ExecutionContext, name: str) -> None:
    """End the message as skipped if a newer call is in its place.

    Call it where no key under ``name`` is this message's. What counts is the mark that the newer call left: the
    message's headers may be wrong.
    """
    if context.manager.claims.is_superseded(context.call.delivery.task_id):
        skip(context, name, f"a newer call took its place in the queue, lock {name!r}")
