"""Who calls a locked task: a worker, an eager ``apply``, or somebody as a plain function.

A task that calls itself directly still sees the *outer* request, so the request alone doesn't tell. The first entry
with a request is the tracer's, and marks the request. ``Task.__call__`` copies the mark, so every call inside finds it.
Where it copies another call's mark (a pool that runs the body in its own thread, with the context passed on),
``tasks.entry.call_path`` tells.

The request is the one that the tracer put on the task's stack. That stack belongs to one thread, so what the tracer
signals (``task_prerun``) is kept in the context too.
"""

from __future__ import annotations

import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from celery import Task
from celery.signals import task_postrun, task_prerun

from celery_etcdlock.core.conflict_decision import Place
from celery_etcdlock.core.record import DIRECT_PREFIX, Delivery
from celery_etcdlock.locking.outcomes import Claim
from celery_etcdlock.tasks.entry.call_path import innermost
from celery_etcdlock.tasks.message import headers as message_headers
from celery_etcdlock.tasks.message.due_time import seconds_until

_MARK = "_etcdlock_entered"
_IN_CHARGE = "_etcdlock_in_charge"


@dataclass(slots=True)
class Call:
    """One call of a locked task. ``request`` is Celery's, where there is one for this very call.

    What its message has now, and takes along if it goes back to its queue: ``claims``, the locks that were taken for it
    when it was published, as long as they aren't taken over or released; ``position``, in the queue; ``joins``, whose
    result it waits for.
    """

    place: Place
    delivery: Delivery
    request: Any = None
    #: When the message was first rescheduled, by that worker's wall clock; and how long it waited, as measured.
    waiting_since: float | None = None
    measured: float | None = None
    claims: tuple[Claim, ...] = ()
    position: Claim | None = None
    joins: message_headers.Duplicate | None = None
    #: What was found out about it when it was published.
    duplicate: message_headers.Duplicate | None = None
    #: Whether it came back as a copy with an end that is ours to keep: no worker has looked at ``request.expires``.
    keeps_own_end: bool = False

    @property
    def has_expired(self) -> bool:
        """Whether its end is over, if that is ours to keep."""
        return self.keeps_own_end and seconds_until(self.request.expires) == 0.0

    @property
    def waited(self) -> float:
        """Seconds since the message was first rescheduled."""
        return seconds_waited(self.waiting_since, self.measured)


def seconds_waited(since: float | None, measured: float | None) -> float:
    """By the wall clock, but no more than was measured: a host whose clock is ahead must not end a wait early."""
    elapsed = 0.0 if since is None else max(0.0, time.time() - since)
    return elapsed if measured is None else min(elapsed, measured)


#: The locked task that is being traced here, its request, and the one that was traced around it.
_traced: ContextVar[tuple[Any, Any, Any] | None] = ContextVar("celery_etcdlock_traced", default=None)


def _on_prerun(task: Any = None, **_: Any) -> None:
    if getattr(task, "_lock_plan", None) is not None:
        _traced.set((_itself(task), task.request_stack.top, _traced.get()))


def _on_postrun(task: Any = None, **_: Any) -> None:
    traced = _traced.get()
    if traced is not None and traced[0] is _itself(task):
        _traced.set(traced[2])


def _itself(task: Any) -> Any:
    """An instrumentation may have the tracer run a proxy of the task."""
    return task.app._tasks.get(task.name, task)


task_prerun.connect(_on_prerun, weak=False)
task_postrun.connect(_on_postrun, weak=False)


def request_here(task: Task[Any, Any]) -> Any:
    """Celery's request for what runs here of ``task``, or ``None``."""
    request, traced = task.request_stack.top, _traced.get()
    return traced[1] if request is None and traced is not None and traced[0] is task else request


def entering_request(task: Task[Any, Any]) -> Any:
    """The request of the delivery, or of the eager call, that enters ``task`` now; ``None`` if there is none."""
    request = request_here(task)
    if request is None or request.called_directly or request.id is None or entered(request):
        return None
    traced = _traced.get()
    if traced is not None and traced[1] is request:
        return request
    call_path = innermost()
    return None if call_path is not None and call_path.covers(task, request.id) else request


def entered(request: Any) -> bool:
    """Whether the delivery has asked for its lock."""
    return bool(getattr(request, _MARK, False))


def take_charge(call: Call) -> None:
    """From now on the call's own end frees what its message holds."""
    if call.request is not None:
        setattr(call.request, _IN_CHARGE, True)


def is_taken_charge_of(request: Any) -> bool:
    """Whether the run of this delivery frees what its message holds, however it ends."""
    return bool(getattr(request, _IN_CHARGE, False))


def call_of(request: Any) -> Call:
    """The call that enters its task with this request; ``None``: as a function."""
    if request is None:
        return Call(Place.DIRECT, Delivery(f"{DIRECT_PREFIX}{secrets.token_hex(8)}"))
    setattr(request, _MARK, True)
    waited = message_headers.waited_in(request)
    message = {} if request.is_eager else request
    return Call(
        Place.EAGER if request.is_eager else Place.WORKER,
        delivery_of(request, message_headers.count_in(request, message_headers.RESCHEDULES_HEADER)),
        request,
        waiting_since=message_headers.number_in(request, message_headers.WAITING_SINCE_HEADER),
        measured=None if waited is None else sum(waited),
        claims=message_headers.claims_in(message),
        position=message_headers.position_in(message),
        joins=message_headers.duplicate_in(message, message_headers.JOIN_HEADER),
        duplicate=message_headers.duplicate_in(message, message_headers.DUPLICATE_HEADER),
        keeps_own_end=not request.is_eager and _take_back_end(request),
    )


def _take_back_end(request: Any) -> bool:
    """Put the message's end where Celery and its retries look for it, if it came back without. Whether it did."""
    ends = message_headers.text_in(request, message_headers.EXPIRES_HEADER)
    if ends is None or seconds_until(ends) is None:
        return False
    request.expires = ends
    return True


def delivery_of(carrier: Any, comebacks: int = 0) -> Delivery:
    """The delivery of a request, or of a dict of a message's headers."""
    task_id = str(message_headers.header(carrier, "id"))
    retries = message_headers.count_in(carrier, "retries")
    replacements = message_headers.count_in(carrier, "replaced_task_nesting")
    return Delivery(task_id, retries, replacements, comebacks, call=message_headers.call_in(carrier))
