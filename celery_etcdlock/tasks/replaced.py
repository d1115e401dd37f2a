"""Whether a newer call has put itself in the place of a message that hasn't run yet: then the message must not run."""

from __future__ import annotations

from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Kinship
from celery_etcdlock.locking.claim import Claim
from celery_etcdlock.tasks.run import Run
from celery_etcdlock.tasks.turned_away import skip

__all__ = ["end_if_replaced"]


def end_if_replaced(run: Run, claim: Claim, keys: tuple[Key, ...], leave: tuple[Claim, ...] = ()) -> None:
    """``claim`` isn't among ``keys``, those under its name now, as the message knows it. Why?

    It has lapsed, or is with a copy of the message; or it is with a newer call, and this one ends as skipped, after it
    gave up what it is to ``leave``. Raises ``LockUnavailable``.
    """
    mine = next((key for key in keys if key.token == claim.token), None)
    if mine is not None:
        replaced = run.kinship(mine) is Kinship.STRANGER
    else:
        replaced = run.manager.pending.is_replaced(run.call.delivery.task_id)
    if replaced:
        for each in leave:
            run.manager.pending.drop(each)
        skip(run.task, run.call, claim.name, f"a newer call took its place in the queue, lock {claim.name!r}")
