"""Who calls a locked task: a worker, an eager ``apply``, or somebody as a plain function.

A task that is called directly inside a worker's task still sees the *outer* request when both are the same task, so the
request alone doesn't tell. The first entrance with a request is the tracer's, so that one marks the request; base
``Task.__call__`` copies the mark along, so every call inside finds it.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from celery import Task

from celery_etcdlock.core.conflict import Place
from celery_etcdlock.core.record import DIRECT_PREFIX, Delivery
from celery_etcdlock.locking.claim import Claim
from celery_etcdlock.tasks.headers import (
    DUPLICATE_HEADER,
    JOIN_HEADER,
    Duplicate,
    claims_in,
    duplicate_in,
    header,
    line_in,
)

__all__ = ["COMEBACKS_HEADER", "RETRIES_HEADER", "WAITING_SINCE_HEADER", "Call", "entrance", "is_entered_by_worker"]

#: How often we sent the message back to its queue, and at which ``retries``: a later retry counts anew.
COMEBACKS_HEADER = "etcdlock_comebacks"
RETRIES_HEADER = "etcdlock_retries"
#: Unix time of the first time that the message came back because of a conflict.
WAITING_SINCE_HEADER = "etcdlock_waiting_since"

_MARK = "_etcdlock_entered"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a locked task. ``request`` is Celery's, where there is one for this very call."""

    place: Place
    delivery: Delivery
    request: Any = None
    comebacks: int = 0
    waiting_since: float | None = None
    #: Locks that were taken for this message when it was published, and its place in line.
    claims: tuple[Claim, ...] = ()
    line: Claim | None = None
    #: What was found out about it when it was published; whose result it waits for.
    duplicate: Duplicate | None = None
    joins: Duplicate | None = None

    @property
    def waited(self) -> float:
        """Seconds since the message first came back, by the wall clock."""
        return 0.0 if self.waiting_since is None else max(0.0, time.time() - self.waiting_since)


def is_entered_by_worker(task: Task[Any, Any]) -> bool:
    """Whether it is a worker that enters ``task`` now, for a message."""
    request = task.request_stack.top
    return _is_entrance(request) and not request.is_eager


def _is_entrance(request: Any) -> bool:
    return not (request is None or request.called_directly or request.id is None or getattr(request, _MARK, False))


def entrance(task: Task[Any, Any]) -> Call:
    """The call that enters ``task`` now."""
    request: Any = task.request_stack.top
    if not _is_entrance(request):
        return Call(Place.DIRECT, Delivery(f"{DIRECT_PREFIX}{secrets.token_hex(8)}"))
    setattr(request, _MARK, True)
    retries = _count(request.retries)
    comebacks, waiting_since = 0, None
    if header(request, RETRIES_HEADER) == retries:
        comebacks = _count(header(request, COMEBACKS_HEADER))
        since = header(request, WAITING_SINCE_HEADER)
        waiting_since = since if isinstance(since, int | float) and not isinstance(since, bool) else None
    delivery = Delivery(request.id, retries, _count(request.replaced_task_nesting), comebacks)
    if request.is_eager:
        return Call(Place.EAGER, delivery, request, comebacks, waiting_since)
    return Call(
        Place.WORKER,
        delivery,
        request,
        comebacks,
        waiting_since,
        claims_in(request),
        line_in(request),
        duplicate_in(request, DUPLICATE_HEADER),
        duplicate_in(request, JOIN_HEADER),
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
