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
from celery_etcdlock.locking.outcomes import Claim
from celery_etcdlock.tasks.message.headers import CLAIMS_HEADER
from celery_etcdlock.tasks.producer.publish import Enqueued

logger = logging.getLogger("celery_etcdlock")


def take_together() -> None:
    """Make groups take the locks of their members together, from now on."""
    publish = getattr(group, "_apply_tasks", None)
    if publish is None or hasattr(publish, "_etcdlock"):
        return

    @functools.wraps(publish)
    def apply_tasks(self: Any, tasks: Any, *args: Any, **options: Any) -> Iterator[Any]:
        members = list(tasks)
        waiting: dict[str, Enqueued] = {}
        try:
            _claim(self, members, options, waiting)
            for result in publish(self, iter(members), *args, **options):
                yield result
                waiting.pop(result.id, None)
        finally:
            # Those that weren't published any more, because one before them failed.
            for call in waiting.values():
                call.drop_claims()

    apply_tasks._etcdlock = True  # type: ignore[attr-defined]
    group._apply_tasks = apply_tasks  # type: ignore[attr-defined]


def _claim(calls: Any, members: list[Any], options: dict[str, Any], held: dict[str, Enqueued]) -> None:
    """Take what can be taken together. ``held`` gets the calls that hold their locks, by task id."""
    try:
        wanted = _wanted(calls.app, members, options)
    except (EtcdLockError, TypeError):
        return  # a member whose arguments make no key: it says so itself, as it does alone
    for seconds, each in wanted.items():
        locks = each[0][1].locks
        settings = locks.settings
        members_of = {name: (signature, call) for signature, call, name in each}

        def hold(claim: Claim, members_of: dict[str, tuple[Any, Enqueued]] = members_of) -> None:
            signature, call = members_of[claim.name]
            held[call.task_id] = call
            call.hold(claim)
            signature.options["headers"] = call.headers

        try:
            locks.circuit_breaker.check(settings.timeout)
            locks.manager.pending.claim_each([(name, call.record) for _, call, name in each], seconds, hold)
            locks.circuit_breaker.over()
        except LockUnavailable as error:
            locks.circuit_breaker.tell(error, settings.timeout, settings.on_unavailable)
            if settings.on_unavailable == "raise":
                raise
            # Not a time-out for each of them: they go without, and their workers take the locks.
            for signature, call, _ in each:
                if call.task_id not in held:
                    signature.options["headers"] = {**call.headers, CLAIMS_HEADER: []}


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
        call = Enqueued(task, merged.get("task_id"), task._get_exec_options() | merged)
        found = call.names(tuple(args), kwargs)
        if len(found) == 1 and found[0] not in names and not call.is_successor():
            names.add(found[0])
            # Alike to the second, so that members whose time differs by a moment go together.
            wanted[float(int(call.seconds) + 1)].append((signature, call, found[0]))
    return wanted if len(names) > 1 else {}
