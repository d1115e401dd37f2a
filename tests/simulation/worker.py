"""A worker: its MainProcess with Celery's real strategy and requests, our steps and gate, a model of hub and timer."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery.exceptions import TaskRevokedError
from celery.worker import state as worker_state
from celery.worker import strategy
from celery.worker.control import Panel
from celery.worker.request import Request
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.worker.free_never_started import FreeNeverStarted
from celery_etcdlock.worker.gate import Gate
from tests.simulation.pool import Pool
from tests.simulation.scheduler import Thread

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["Worker"]


class Entry:
    """A timer's."""

    def __init__(self, call: Callable[[], Any], arguments: tuple[Any, ...]) -> None:
        self.call = call
        self.args = arguments
        self.canceled = False

    def cancel(self) -> None:
        self.canceled = True


class Timer:
    """What the hub runs when its time has come: by the monotonic clock, as kombu's."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._number = 0
        self.due: list[tuple[float, int, Entry]] = []

    def call_after(self, seconds: float, call: Any, args: Any = (), kwargs: Any = (), priority: int = 0) -> Entry:
        entry = Entry(lambda: call(*args), tuple(args))
        self._number += 1
        heapq.heappush(self.due, (self._worker.world.scheduler.now + max(0.0, seconds), self._number, entry))
        self._worker.wake()
        return entry

    def call_at(self, eta: float, call: Any, args: Any = (), kwargs: Any = (), priority: int = 0) -> Entry:
        return self.call_after(eta - self._worker.world.scheduler.now, call, args)

    def cancel(self, entry: Entry) -> None:
        entry.cancel()


class Qos:
    def __init__(self, value: int) -> None:
        self.value = value

    def increment_eventually(self, n: int = 1) -> None:
        self.value += n

    def decrement_eventually(self, n: int = 1) -> None:
        self.value -= n


class Consumer:
    """One connection's worth of Celery's consumer."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.app = worker.app.celery
        self.hostname = worker.name
        self.event_dispatcher = None
        self.connection_errors = ()
        self.timer = worker.timer
        self.hub = SimpleNamespace(call_soon=lambda call, *args: worker.call(lambda: call(*args)))
        self.controller = SimpleNamespace(semaphore=worker.semaphore, state=worker_state)
        self.pool = worker.pool
        self.disable_rate_limits = True
        self.task_buckets: Any = {}
        self.qos = Qos(worker.prefetch)
        self.on_task_request: Callable[[Any], Any] = worker.process_task
        self._limit_task = self._limit_post_eta = None

    def apply_eta_task(self, request: Any) -> None:
        worker_state.task_reserved(request)
        self.on_task_request(request)
        self.qos.decrement_eventually()


class Worker:
    """See the module."""

    def __init__(self, world: World, name: str, wall_offset: float) -> None:
        config = world.plan.config
        self.world = world
        self.name = name
        self.process = world.scheduler.process(name, wall_offset, f"host-{name}")
        self.process.on_switch = self._bring_state
        self.app = world.app_for(self.process)
        self.timer = Timer(self)
        self.semaphore = LaxBoundedSemaphore(config.slots)
        self.prefetch = config.slots * config.prefetch
        self.inbox: list[Callable[[], Any]] = []
        self.channel = 0
        self.pool: Pool
        self.consumer: Consumer
        self.gate: Any = None
        self._state = _State()
        self._waiting: Thread | None = None
        self._main = world.scheduler.spawn(self.process, "hub", self._run)

    # --- the hub --------------------------------------------------------------------------------------------------

    def call(self, call: Callable[[], Any]) -> None:
        self.inbox.append(call)
        self.wake()

    def waits_for_time(self) -> bool:
        """Whether there are requests that wait here for their time, known to the broker or not."""
        entries = [entry for _, _, entry in self.timer.due if not entry.canceled]
        return any(isinstance(argument, Request) for entry in entries for argument in entry.args)

    def wake(self) -> None:
        if self._waiting is not None:
            self.world.scheduler.unpark(self._waiting)

    def _run(self) -> None:
        world, scheduler = self.world, self.world.scheduler
        locks = EtcdLocks.from_app(self.app.celery)
        guardian = locks.look_after_children()
        self._never_started = FreeNeverStarted(SimpleNamespace(app=self.app.celery))
        self.pool = Pool(self, world.plan.config.slots, world.plan.config.max_tasks_per_child)
        if guardian is not None:
            guardian.start()
        self.connect()
        while True:
            while self.inbox:
                self.inbox.pop(0)()
            while self.timer.due and self.timer.due[0][0] <= scheduler.now:
                entry = heapq.heappop(self.timer.due)[2]
                if not entry.canceled:
                    entry.call()
            found = self._take()
            if found is not None:
                self._receive(*found)
                scheduler.sleep(0.0005)
                continue
            if self.inbox:
                continue
            self._waiting = scheduler.current
            world.broker.consumers.append(self._main)
            seconds = self.timer.due[0][0] - scheduler.now if self.timer.due else None
            scheduler.park(seconds)
            self._waiting = None

    def _take(self) -> Any:
        mine = sum(1 for each in self.world.broker.unacked.values() if each.worker is self.process)
        return self.world.broker.take(self.process, self.channel) if mine < self.consumer.qos.value else None

    def _receive(self, tag: int, message: Any) -> None:
        world, channel = self.world, self.channel

        def ack(*_: Any, **__: Any) -> None:
            # Travels to the broker, and is worth nothing on a new connection.
            world.scheduler.spawn(
                self.process, "ack", lambda: world.broker.ack(tag) if channel == self.channel else None, 0.001
            )

        def reject(logger: Any, errors: Any, requeue: bool = False) -> None:
            world.scheduler.spawn(
                self.process,
                "reject",
                lambda: world.broker.reject(tag, requeue) if channel == self.channel else None,
                0.001,
            )

        world.ledger.received(self, message)
        handler = self._strategies.get(message.headers["task"])
        handler(message, None, ack, reject, [])

    # --- connections ----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        self.channel += 1
        self.consumer = Consumer(self)
        if self.world.plan.config.gate:
            self.gate = Gate(self.consumer)
        self._strategies = {
            spec.name: strategy.default(self.app.celery.tasks[spec.name], self.app.celery, self.consumer)
            for spec in self.world.plan.specs
        }

    def lose_connection(self) -> None:
        """As ``Consumer.on_close``, and a new connection."""

        def lose() -> None:
            if self.gate is not None:
                self.gate.stop(self.consumer)
            if self.world.plan.config.cancels:
                self._cancel_late_tasks()
            self.semaphore.clear()
            for request in tuple(worker_state.reserved_requests):
                if request not in worker_state.active_requests:
                    worker_state.requests.pop(request.id, None)
            worker_state.reserved_requests.clear()
            worker_state.reserved_requests.update(tuple(worker_state.active_requests))
            for _, _, entry in self.timer.due:
                entry.cancel()
            worker_state.scheduled_requests.clear()
            self.pool.flush()
            self.world.broker.connection_lost(self.process)
            self.connect()

        self.call(lose)

    def _cancel_late_tasks(self) -> None:
        for request in tuple(worker_state.active_requests):
            if request.task.acks_late and not request.acknowledged:
                self.world.ledger.note(f"{self.name} cancels {request.id[:8]}, whose message comes again")
                self.world.coverage.hit("fault", "cancelled with the connection")
                request.cancel(self.pool)

    def process_task(self, request: Any) -> Any:
        return self.semaphore.acquire(self._process_task, request)

    def _process_task(self, request: Any) -> None:
        try:
            request.execute_using_pool(self.pool)
        except TaskRevokedError:
            self.semaphore.release()

    def revoke(self, task_id: str, terminate: bool) -> None:
        state = SimpleNamespace(app=self.app.celery, consumer=self.consumer)
        self.call(lambda: Panel.data["revoke"](state, task_id=task_id, terminate=terminate, signal="SIGKILL"))

    # --- what Celery keeps in globals -----------------------------------------------------------------------------

    def _bring_state(self, thread: Thread) -> None:
        if _State.present is not self._state and not thread.name.startswith("celery-etcdlock"):
            if _State.present is not None:
                _State.present.take_away()
            self._state.bring()


class _State:
    """``celery.worker.state`` of one MainProcess, while another one's is in its place."""

    present: _State | None = None

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {}
        self.sets: list[list[Any]] = [[], [], []]
        self.revoked: list[Any] = []

    @staticmethod
    def _sets() -> list[Any]:
        return [worker_state.reserved_requests, worker_state.active_requests, worker_state.scheduled_requests]

    def take_away(self) -> None:
        self.requests = dict(worker_state.requests)
        self.sets = [list(each) for each in self._sets()]
        self.revoked = list(worker_state.revoked)
        worker_state.requests.clear()
        for each in self._sets():
            each.clear()
        worker_state.revoked.clear()
        _State.present = None

    def bring(self) -> None:
        worker_state.requests.update(self.requests)
        for each, kept in zip(self._sets(), self.sets, strict=True):
            each.update(kept)
        worker_state.revoked.update(self.revoked)
        self.requests, self.sets = {}, [[], [], []]
        _State.present = self
