"""The calls of a group take their locks together: a hundred in one round trip.

Celery publishes a group's members one by one. This steps in before the first: it asks for the locks of all members at
once, and writes each lock that it got into its member's headers, so that the member is published with it. All others (a
member that is a chain, a lock that is held, the second call of one key) ask by themselves.

This only saves time: if Celery's group has changed, members take their locks one by one.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from celery import group

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.core.record import Record
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
            # These weren't published, because one before them failed.
            for call in waiting.values():
                call.drop_claims()

    apply_tasks._etcdlock = True  # type: ignore[attr-defined]
    group._apply_tasks = apply_tasks  # type: ignore[attr-defined]


def _claim(calls: Any, members: list[Any], options: dict[str, Any], held: dict[str, Enqueued]) -> None:
    """Take what can be taken together. ``held`` receives the calls that got their lock, by task id."""
    try:
        wanted = _wanted(calls.app, members, options)
    except (EtcdLockError, TypeError):
        return  # a member's arguments make no key: its own call raises that

    def hold(claim: Claim) -> None:
        signature, call = wanted[claim.name]
        held[call.task_id] = call
        call.hold(claim)
        signature.options["headers"] = call.headers

    by_seconds: dict[float, list[tuple[str, Record]]] = defaultdict(list)
    for name, (_, call) in wanted.items():
        # Rounded to a second, so that members whose times hardly differ go together.
        by_seconds[float(int(call.seconds) + 1)].append((name, call.record))
    locks = EtcdLocks.from_app(calls.app)
    for seconds, each in by_seconds.items():
        try:
            locks.circuit_breaker.check()
            locks.manager.claims.claim_each(each, seconds, hold)
            locks.circuit_breaker.over()
        except LockUnavailable as error:
            locks.circuit_breaker.tell(error)
            if locks.settings.on_unavailable == "raise":
                raise
            # Without a time-out for each of them: they are published without, and their workers take the locks.
            for signature, call in (wanted[name] for name, _ in each):
                if call.task_id not in held:
                    signature.options["headers"] = {**call.headers, CLAIMS_HEADER: []}


def _wanted(app: Any, members: list[Any], options: dict[str, Any]) -> dict[str, tuple[Any, Enqueued]]:
    """The members that take one lock when they are called, by its name: of several the first."""
    wanted: dict[str, tuple[Any, Enqueued]] = {}
    for signature, *_ in members:
        task = app.tasks.get(signature.task)
        plan = getattr(task, "_lock_plan", None)
        if plan is None or not plan.options.lifetime.at_enqueue or signature.options.get("headers"):
            continue
        args, kwargs, merged = signature._merge(options.get("args"), options.get("kwargs"), {})
        call = Enqueued(task, merged.get("task_id"), task._get_exec_options() | merged)
        found = call.names(tuple(args), kwargs)
        if len(found) == 1 and found[0] not in wanted and not call.is_successor():
            wanted[found[0]] = (signature, call)
    return wanted if len(wanted) > 1 else {}
