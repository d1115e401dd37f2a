"""The gate before the pool: a rescheduled message whose lock is still held waits here, without a pool slot.

A message passes at once unless its headers say that it was rescheduled for a lock: the first try belongs to the pool
process, where a free lock costs least. A rescheduled one is *parked* as Celery parks a message with an ETA: not
acknowledged, without a slot, with the prefetch count raised by one, listed by ``inspect scheduled``, and given back to
the broker when the worker stops or the connection is lost. It leaves when the lock watcher says that its turn has come
*and* a pool slot is free, when its time to wait is over, or when it expires. Then the pool process acquires the lock
itself, or does what the policy says. So a lock is only taken with a slot in hand, it has one owner, and everything else
about a request is as without the gate. A message that is revoked while parked is discarded at once.

If its turn comes and no slot is free within a second, a message gives up its queue position (rule 13): a worker that is
busy for hours must not hold up a free one. It goes on waiting here, and takes a new position if it needs one.

Parking is bounded: by ``etcdlock_gate_limit`` messages, and by a part of the time for which the broker lets a message
stay unacknowledged. After that the message goes through, and is published again. Quorum queues have no gate, since
their prefetch count can't be raised: there messages come back after their delay.
"""

from __future__ import annotations

import functools
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from celery.signals import task_received
from celery.worker import state as worker_state

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.tasks.entry.caller import delivery_of, seconds_waited
from celery_etcdlock.tasks.message import headers as message_headers
from celery_etcdlock.tasks.message.broker_delay import has_quorum_queues
from celery_etcdlock.tasks.singleton_task import locked_tasks
from celery_etcdlock.wiring import open_inspector
from celery_etcdlock.worker.broker_limit import broker_limit, waits_that_do_not_fit
from celery_etcdlock.worker.listening_step import ListeningStep
from celery_etcdlock.worker.lock_watcher import LockWatcher, Waiter
from celery_etcdlock.worker.revoke_signal import revoked, tell_of_revokes
from celery_etcdlock.worker.timer_entries import HUB_IS_WOKEN, cancel, timer_entry

logger = logging.getLogger("celery_etcdlock")

#: Seconds between two looks for a free slot.
SLOT_SECONDS = 0.2
#: Seconds for which a message whose turn has come may hold up others while it waits for a slot here.
PATIENCE_SECONDS = 1.0


@dataclass(eq=False, kw_only=True)
class _Parked(Waiter):
    """A message that waits here. Times are on this host's monotonic clock."""

    request: Any
    until: float
    #: Seconds that it had waited before it came here.
    waited_before: float | None
    #: When its turn had come, but there was no slot.
    no_slot_since: float | None = None
    since: float = field(default_factory=time.monotonic)

    @property
    def waited(self) -> float | None:
        return None if self.waited_before is None else self.waited_before + time.monotonic() - self.since


class Gate(ListeningStep):
    """See the module. All of it happens on the hub, but for the lock watcher's own threads."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._consumer = consumer
        self._locks = EtcdLocks.from_app(consumer.app)
        settings = self._locks.settings
        self._limit = settings.gate_limit
        self._parked: dict[str, _Parked] = {}
        self._going: set[str] = set()
        self._slot_timer: Any = None
        self._wake_timer: Any = None
        self._watcher = LockWatcher(
            functools.partial(open_inspector, settings), lambda: self._locks.manager, self._on_turn
        )
        self._pass_on = consumer.on_task_request
        if self._is_of_use(consumer.app):
            consumer.on_task_request = self.admit
            # Celery itself parks those that came back with a delay; they are woken too.
            self.connect(task_received, self._on_received)
            tell_of_revokes()
            self.connect(revoked, self._discard_revoked)
            limit = broker_limit(consumer.app)
            self._longest_seconds = limit.longest_wait_seconds
            warning = waits_that_do_not_fit(locked_tasks(consumer.app), settings, limit)
            if warning is not None:
                logger.warning("celery-etcdlock: %s", warning)

    def _is_of_use(self, app: Any) -> bool:
        settings = self._locks.settings
        if not settings.gate or settings.channel is not None or not settings.in_etcd:
            return False
        if has_quorum_queues(app):
            logger.info("celery-etcdlock: no gate on quorum queues; messages wait for a lock in their queue")
            return False
        return bool(locked_tasks(app))

    def stop(self, consumer: Any) -> None:
        """The connection is lost or the worker stops: what is parked goes back to the broker."""
        parked, self._parked = self._parked, {}
        self._watcher.clear()
        self._going.clear()
        self._slot_timer = self._wake_timer = None
        for each in parked.values():
            cancel(consumer, each.request)

    def info(self, consumer: Any) -> dict[str, Any]:  # type: ignore[override]  # typed as empty
        return {"etcdlock_gate": {"parked": len(self._parked)}}

    # --- coming ---------------------------------------------------------------------------------------------

    def admit(self, request: Any) -> Any:
        """In front of the pool, for every message."""
        try:
            waits_here = self._waits_here(request)
        except Exception:
            # A message mustn't end the worker, and without the gate it comes back after its delay.
            logger.exception("celery-etcdlock: the gate can't tell whether task %s waits for a lock", request.id)
            waits_here = False
        return None if waits_here else self._pass_on(request)

    def _waits_here(self, request: Any) -> bool:
        """Whether the message is parked now."""
        name = message_headers.text_in(request.request_dict, message_headers.WAITS_FOR_HEADER)
        if name is None:
            return False
        if request.id in self._going:
            self._going.discard(request.id)
            return False
        parked = self._parked.get(request.id)
        if parked is None:
            parked = self._registered(request, name)
        elif parked.request is not request:
            return False  # a copy: the lock keeps them apart
        if parked is None or time.monotonic() >= parked.until:
            self._forget(request)
            return False
        self._park(parked)
        return True

    def _on_received(self, request: Any, **_: Any) -> None:
        name = message_headers.text_in(request.request_dict, message_headers.WAITS_FOR_HEADER)
        if name is None or not request.eta or request.id in self._parked:
            return
        # With a rate limit it waits in Celery's bucket after its time has come: the lock is watched only after that.
        if self._bucket(request) is None:
            self._registered(request, name)

    def _bucket(self, request: Any) -> Any:
        """Celery's, if the task has a rate limit."""
        consumer = self._consumer
        return None if consumer.disable_rate_limits else consumer.task_buckets[request.task.name]

    def _registered(self, request: Any, name: str) -> _Parked | None:
        """Have its lock watched. ``None`` where it can't wait here."""
        plan = getattr(request.task, "_lock_plan", None)
        if plan is None or len(self._parked) >= self._limit:
            return None
        carrier = request.request_dict
        measured = message_headers.waited_in(carrier)
        waited = None if measured is None else measured[0]
        since = message_headers.number_in(carrier, message_headers.WAITING_SINCE_HEADER)
        seconds = min(self._longest_seconds, plan.options.wait_timeout - seconds_waited(since, waited))
        if request.expires is not None:
            seconds = min(seconds, request.expires.timestamp() - time.time())
        if seconds <= 0:
            return None
        if message_headers.claims_in(carrier):
            # A newer call may take its place in the queue, which it finds out when it comes.
            return None
        joins = message_headers.duplicate_in(carrier, message_headers.JOIN_HEADER)
        parked = self._parked[request.id] = _Parked(
            name,
            delivery_of(carrier),
            plan.options.lock_limit,
            message_headers.position_in(carrier),
            None if joins is None else joins.task_id,
            request=request,
            until=time.monotonic() + seconds,
            waited_before=waited,
        )
        self._watcher.add(parked)
        if self._wake_timer is None and not HUB_IS_WOKEN:
            self._turn_hub()
        return parked

    def _park(self, parked: _Parked) -> None:
        request, consumer = parked.request, self._consumer
        worker_state.reserved_requests.discard(request)
        consumer.qos.increment_eventually()
        seconds = max(0.05, parked.until - time.monotonic())
        request._eta_timer_entry = consumer.timer.call_after(seconds, consumer.apply_eta_task, (request,), priority=6)
        scheduled = getattr(worker_state, "task_scheduled", None)  # Celery 5.7
        if scheduled is not None:
            scheduled(request)
        if parked.no_slot_since is not None:
            self._wait_for_slot()
        else:
            self._watcher.look_at([parked.name])

    def _discard_revoked(self, **_: Any) -> None:
        """What was revoked leaves at once: Celery stores its result, and its queue position is free."""
        for parked in list(self._parked.values()):
            request = parked.request
            _set_headers(request, parked)
            if timer_entry(self._consumer, request) is not None and request.revoked():
                self._forget(request)
                cancel(self._consumer, request)
                self._consumer.qos.decrement_eventually()

    # --- going ----------------------------------------------------------------------------------------------

    def _on_turn(self, waiters: list[Any]) -> None:
        """In a thread of the lock watcher."""
        if self._consumer.hub is not None:
            self._consumer.hub.call_soon(self._pass_ready, waiters)
        else:
            # Where there is no hub, it is the timer that passes messages on whose time has come.
            self._consumer.timer.call_after(0, self._pass_ready, (waiters,))

    def _turn_hub(self) -> None:
        """Make a hub that can't be woken turn often while messages are parked."""
        self._wake_timer = self._consumer.timer.call_after(SLOT_SECONDS, self._turn_hub) if self._parked else None

    def _pass_ready(self, ready: list[_Parked]) -> None:
        for parked in ready:
            if self._parked.get(parked.request.id) is not parked:
                continue
            # Celery sends its signal just before it sets the timer that has to be cancelled.
            if self._free_slots() > 0 and timer_entry(self._consumer, parked.request) is not None:
                self._go(parked)
            else:
                parked.no_slot_since = parked.no_slot_since or time.monotonic()
                self._wait_for_slot()

    def _go(self, parked: _Parked) -> None:
        request = parked.request
        self._forget(request)
        self._going.add(request.id)
        cancel(self._consumer, request)
        bucket = self._bucket(request)
        if bucket is None:
            self._consumer.apply_eta_task(request)
        else:
            # It used up what its rate limit gave it for the try that failed.
            self._consumer._limit_post_eta(request, bucket, 1)

    def _forget(self, request: Any) -> None:
        parked = self._parked.pop(request.id, None)
        if parked is not None:
            self._watcher.remove(parked)
            _set_headers(request, parked)

    def _wait_for_slot(self) -> None:
        if self._slot_timer is None:
            self._slot_timer = self._consumer.timer.call_after(SLOT_SECONDS, self._look_for_slot)

    def _look_for_slot(self) -> None:
        self._slot_timer = None
        waiting = [parked for parked in self._parked.values() if parked.no_slot_since is not None]
        if not waiting:
            return
        free = max(0, self._free_slots())
        for parked in waiting[:free]:
            parked.no_slot_since = None
        # Their turn may be over by now.
        self._watcher.look_at({parked.name for parked in waiting[:free]})
        if len(waiting) > free:
            self._wait_for_slot()
            before = time.monotonic() - PATIENCE_SECONDS
            late = [parked for parked in waiting[free:] if (parked.no_slot_since or 0.0) < before]
            self._watcher.give_up_positions(late)

    def _free_slots(self) -> int:
        semaphore = self._consumer.controller.semaphore
        if semaphore is not None:
            return int(semaphore.value)
        return int(self._consumer.pool.num_processes or 1) - len(worker_state.active_requests)


def _set_headers(request: Any, parked: _Parked) -> None:
    """What the pool process finds in the message's headers: its queue position, if it has one yet, and its waiting."""
    position, waited = parked.position, parked.waited
    headers = request.request_dict
    for each in (headers, headers.get("headers")):
        if isinstance(each, dict):
            each.pop(message_headers.POSITION_HEADER, None)
            if position is not None:
                each[message_headers.POSITION_HEADER] = message_headers.written_claim(position)
            if waited is not None:
                each[message_headers.WAITED_HEADER] = [round(waited, 3), 0.0]
