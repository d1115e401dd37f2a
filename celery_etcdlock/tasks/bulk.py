"""The calls of a group take their locks together: a hundred in a round trip, not one after the other.

Celery publishes a group's members one by one and gives nobody a look at all of them, so this steps in between: before
the first is published, the locks of all members are asked for at once, and each that was granted goes into the headers
of its member, which is then published as one that holds its lock already. Whatever doesn't fit (a member that is a
chain, a lock that is taken, the second call of one key) is left to the member itself.

Nothing depends on it but the time: where Celery's group has changed, members take their locks one by one.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from celery import group

from celery_etcdlock.errors import EtcdLockError, LockUnavailable
from celery_etcdlock.locking.claim import Claim
from celery_etcdlock.tasks.enqueue import Enqueued
from celery_etcdlock.tasks.headers import CLAIMS_HEADER

__all__ = ["take_together"]

logger = logging.getLogger("celery_etcdlock")


def take_together() -> None:
    """Make groups take the locks of their members together, from now on."""
    publish = getattr(group, "_apply_tasks", None)
    if publish is None or hasattr(publish, "_etcdlock"):
        return

    @functools.wraps(publish)
    def apply_tasks(self: Any, tasks: Any, *args: Any, **options: Any) -> Iterator[Any]:
        members = list(tasks)
        waiting = _claim(self, members, options)
        try:
            for result in publish(self, iter(members), *args, **options):
                yield result
                waiting.pop(result.id, None)
        finally:
            # Those that weren't published any more, because one before them failed.
            for call in waiting.values():
                call.drop_claims()

    apply_tasks._etcdlock = True  # type: ignore[attr-defined]
    group._apply_tasks = apply_tasks  # type: ignore[attr-defined]


def _claim(calls: Any, members: list[Any], options: dict[str, Any]) -> dict[str, Enqueued]:
    """Take what can be taken together. Returns the calls that hold their locks, by task id."""
    try:
        wanted = _wanted(calls.app, members, options)
    except (EtcdLockError, TypeError):
        return {}  # a member whose arguments make no key: it says so itself, as it does alone
    held: dict[str, Enqueued] = {}
    for seconds, each in wanted.items():
        locks = each[0][1].locks
        settings = locks.settings
        try:
            locks.outage.check(settings.timeout)
            outcomes = locks.manager.pending.claim_each([(name, call.record) for _, call, name in each], seconds)
            locks.outage.over()
        except LockUnavailable as error:
            locks.outage.tell(error, settings.timeout, settings.on_unavailable)
            if settings.on_unavailable == "raise":
                raise
            # Not a time-out for each of them: they go without, and their workers take the locks.
            outcomes = []
        for signature, call, _ in each if not outcomes else ():
            signature.options["headers"] = {**call.headers, CLAIMS_HEADER: []}
        for (signature, call, _), outcome in zip(each, outcomes, strict=False):
            if isinstance(outcome, Claim):
                call.hold([outcome])
                signature.options["headers"] = call.headers
                held[call.task_id] = call
    return held


def _wanted(app: Any, members: list[Any], options: dict[str, Any]) -> dict[float, list[tuple[Any, Enqueued, str]]]:
    """The members that take one lock when they are called, by how long it is to stand; each name once."""
    wanted: dict[float, list[tuple[Any, Enqueued, str]]] = defaultdict(list)
    names = set()
    for signature, *_ in members:
        task = app.tasks.get(signature.task)
        plan = getattr(task, "_lock_plan", None)
        if plan is None or not plan.options.lifetime.at_enqueue or signature.options.get("headers"):
            continue
        args, kwargs, merged = signature._merge(options.get("args"), options.get("kwargs"), {})
        call = Enqueued(task, plan, merged.get("task_id"), task._get_exec_options() | merged)
        found = call.names(tuple(args), kwargs)
        if len(found) == 1 and found[0] not in names and not call.is_successor():
            names.add(found[0])
            # Alike to the second, so that members whose time differs by a moment go together.
            wanted[float(int(call.seconds) + 1)].append((signature, call, found[0]))
    return wanted if len(names) > 1 else {}
