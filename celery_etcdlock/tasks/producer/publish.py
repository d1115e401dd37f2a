"""Takes a task's lock when it is called, and publishes its message, or does what the policy says.

One transaction, then the message, with the token in its headers. Nobody renews the key (``locking.claims``). It lasts
until a worker takes it over or drops it, until a worker finds the message revoked, expired or rejected and drops it
(``worker.free_never_started``), or until it expires. If the message can't be published, the key is dropped here.

*A conflict* meets the policy for enqueueing. A call is left out only where nobody was promised its result: not in a
chain, a group or a chord, not where the caller chose the task id, and not with callbacks of its own that need the
result that it joins. There the message is published, marked as a duplicate, and the worker ends it.

*In doubt*, when the store can't be asked, the message is published without a lock. The worker takes the lock when it
starts, as for a message that was published without us.
"""

from __future__ import annotations

import functools
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any, cast

from celery import Task
from celery.result import AsyncResult
from celery.utils import uuid

from celery_etcdlock.app.etcd_locks import EtcdLocks, warn_of_another_broker
from celery_etcdlock.core.events import TaskDeduplicated
from celery_etcdlock.core.key_kinds import is_replaceable, written_by_a_process
from celery_etcdlock.core.policies import POLICIES
from celery_etcdlock.core.policy_choice import policy_of
from celery_etcdlock.core.record import Delivery, KeyKind, Record
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.lock_holder import conflict_error
from celery_etcdlock.locking.outcomes import Claim, Conflict
from celery_etcdlock.tasks.definition.lock_plan import LockPlan
from celery_etcdlock.tasks.message import headers as message_headers
from celery_etcdlock.tasks.message.due_time import message_seconds, seconds_until

logger = logging.getLogger("celery_etcdlock")

#: A caller who sets one of these was promised a result under an id.
PROMISES = ("chord", "group_id", "chain")

#: A message with one of these headers was published before.
_OF_PUBLISHED = frozenset(
    {message_headers.CLAIMS_HEADER, message_headers.DUPLICATE_HEADER, message_headers.RESCHEDULES_HEADER}
)

Send = Callable[[str, dict[str, Any]], "AsyncResult[Any]"]


class Enqueued:
    """One call on its way to the broker. ``headers`` are what the message will carry."""

    def __init__(self, task: Any, task_id: str | None, options: Mapping[str, Any]) -> None:
        self.task = task
        self.plan: LockPlan = task._lock_plan
        self.lifetime = self.plan.options.lifetime
        self.locks = EtcdLocks.from_app(task.app)
        self.promised = task_id is not None or any(options.get(name) is not None for name in PROMISES)
        self.has_callbacks = bool(options.get("link") or options.get("link_error"))
        self.task_id = task_id or uuid()
        self.headers = with_call(options.get("headers"), self.task_id)
        self._claims: list[Claim] = []
        self.in_chord_header = bool(options.get("chord"))
        self._options = options
        self._about: str | None = None
        self.seconds = claim_seconds(task, self.plan, options)

    @functools.cached_property
    def record(self) -> Record:
        """What the key of this call holds. Ask for it once its names are known."""
        delivery = Delivery(self.task_id, call=message_headers.call_in(self.headers))
        kind = KeyKind.WINDOW if self.lifetime.name == "until_expired" else KeyKind.CLAIM
        return self.locks.record(delivery, self.task.name, self.plan.options.lock_limit, self._about, kind)

    def is_successor(self) -> bool:
        """A retry or replacement of the task that runs here, or a message that goes through once more."""
        if not _OF_PUBLISHED.isdisjoint(self.headers):
            return True
        current = self.task.app.current_worker_task
        return current is not None and current.request.id == self.task_id

    def names(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
        names = self.task._lock_names(args, dict(kwargs), self.headers, self._options)
        self._about = getattr(names, "about", None)
        return tuple(self.lifetime.queued_name(name) for name in names)

    def publish(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], send: Send) -> AsyncResult[Any]:
        """Take the lock and publish the call by ``send``, or do what the policy says.

        Raises ``LockConflict`` if that is the policy, ``LockUnavailable`` if ``etcdlock_on_unavailable`` is ``raise``,
        and what ``send`` raises.
        """
        try:
            try:
                instead = None if self.is_successor() else self._claim(self.names(args, kwargs))
                return send(self.task_id, self.headers) if instead is None else instead
            except BaseException:
                self.drop_claims()
                raise
        except BaseException:
            # Once more: a signal may have struck in the first.
            self.drop_claims()
            raise

    def _claim(self, names: tuple[str, ...]) -> AsyncResult[Any] | None:
        """Take the locks. What to return instead of publishing; ``None`` to publish, with or without them."""
        circuit_breaker = self.locks.circuit_breaker
        try:
            circuit_breaker.check()
            wanted = [(name, self.record) for name in names]
            outcomes = self.locks.manager.claims.claim_all(wanted, self.seconds, self.hold)
            circuit_breaker.over()
            conflicts = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
            return self._on_conflict(max(conflicts, key=lambda conflict: len(conflict.keys))) if conflicts else None
        except LockUnavailable as error:
            circuit_breaker.tell(error)
            if self.locks.settings.on_unavailable == "raise":
                raise
            return None

    def hold(self, claim: Claim) -> None:
        self._claims.append(claim)
        self.headers[message_headers.CLAIMS_HEADER] = [message_headers.written_claim(each) for each in self._claims]

    def drop_claims(self) -> None:
        """Delete the claims of a message that won't be published: now, or when the store answers again.

        A second call goes on where the first was interrupted.
        """
        while self._claims:
            self.locks.manager.drop_in_the_end(self._claims[0])
            del self._claims[0]

    def _on_conflict(self, conflict: Conflict) -> AsyncResult[Any] | None:
        warn_of_another_broker(conflict, self.record)
        error = conflict_error(conflict)
        policy = policy_of(
            self.plan.options, self.locks.settings, error, at_enqueue=True, in_chord_header=self.in_chord_header
        )
        facts = POLICIES[policy]
        if (facts.replaces and self._replace(conflict)) or (facts.waits and not facts.needs_result):
            return None  # it is published, in another's place or to meet the conflict again when it runs
        if policy == "raise" and not self.promised:
            raise error
        # Callbacks of its own go on from the holder's result: only a worker can see to that.
        joins_for_others = facts.needs_result and self.has_callbacks
        if self.promised or joins_for_others or policy == "raise" or error.task_id is None:
            self.headers[message_headers.DUPLICATE_HEADER] = message_headers.Duplicate.of(policy, error).written()
            return None
        reason = f"not published: {error}"
        logger.info("Task %s %s", self.task.name, reason)
        self.locks.manager.tell(TaskDeduplicated(error.name, self.record, reason))
        result = self.task.AsyncResult(error.task_id)
        result.lock_conflict = error
        return cast("AsyncResult[Any]", result)

    def _replace(self, conflict: Conflict) -> bool:
        """Take a queued call's place and return True, or ask a running one to release."""
        holder = conflict.holder
        if holder is None:
            return False
        key = conflict.keys[0]
        manager = self.locks.manager
        if written_by_a_process(key):
            manager.ask_to_release(conflict.name, key, f"task {self.task_id}, which replaces it,")
        if not is_replaceable(key):
            return False
        older = holder.delivery.task_id
        claim = Claim(conflict.name, key.token, key.mod_revision)
        kept = manager.claims.keep(claim, self.record, self.seconds, replaces=older, on_claimed=self.hold)
        if isinstance(kept, Conflict):
            return False
        logger.info("Task %s[%s] takes the place of %s in the queue", self.task.name, self.task_id, older)
        return True


def with_call(headers: Mapping[str, Any] | None, task_id: str) -> dict[str, Any]:
    """The headers of a call under ``task_id``: marked as such, and without ours of another task's message."""
    given = headers or {}
    own = dict(given) if message_headers.are_for(given, task_id) else message_headers.without_ours(given)
    if message_headers.RESCHEDULES_HEADER not in own:  # else it was published without us, and stays as it was
        own.setdefault(message_headers.CALL_HEADER, [task_id, secrets.token_hex(8)])
    return own


def claim_seconds(task: Task[Any, Any], plan: LockPlan, options: Mapping[str, Any]) -> float:
    """For how long the message keeps its lock: until it is due, plus ``pending_ttl``."""
    if plan.options.unique_for is not None:
        return plan.options.unique_for
    due = seconds_until(options.get("eta")) or float(options.get("countdown") or 0.0)
    return message_seconds(plan.options.pending_ttl, due, options.get("expires", task.expires))
