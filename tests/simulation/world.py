"""Everything together: plays a plan, and says what happened."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from celery.app import trace
from celery.exceptions import Ignore, Retry

from celery_etcdlock.errors import EtcdLockError, LockLost, NotLocked
from celery_etcdlock.etcd.history import History
from celery_etcdlock.etcd.inspection import EtcdInspector
from celery_etcdlock.etcd.store import EtcdStore
from celery_etcdlock.locking import guardian, lease_page, session
from celery_etcdlock.locking.group_commit import GroupCommit
from celery_etcdlock.tasks import interruption, runtime
from celery_etcdlock.tasks.current import current_lock
from celery_etcdlock.tasks.runtime import EtcdLocks
from celery_etcdlock.worker import gate, never_started, revokes
from tests.simulation.ambient import simulated
from tests.simulation.apps import APPS, SimApp, TaskSpec
from tests.simulation.backend import Results
from tests.simulation.broker import Broker, Message, Producer
from tests.simulation.coverage import Coverage
from tests.simulation.etcd import Etcd, Link, SimTransport
from tests.simulation.ledger import Call, Ledger, Run
from tests.simulation.plan import BUSY_SECONDS, Action, Plan
from tests.simulation.properties import Properties, Violation
from tests.simulation.scheduler import EPOCH, Process, Scheduler, Thread
from tests.simulation.worker import Worker, _State

__all__ = ["Outcome", "World", "play"]

#: How long after the busy time all messages must have come to their end, in seconds.
ENOUGH_SECONDS = 700.0


@dataclass
class Outcome:
    plan: Plan
    violation: Violation | None
    lines: list[str]
    coverage: Coverage
    steps: int
    seconds: float

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()[:16]


class World:
    """See the module."""

    def __init__(self, plan: Plan, scheduler: Scheduler, coverage: Coverage) -> None:
        self.plan = plan
        self.scheduler = scheduler
        self.coverage = coverage
        self.violation: Violation | None = None
        self.chance = random.Random(scheduler.chance.random())
        self.ledger = Ledger(self)
        self.etcd = Etcd(scheduler)
        self.properties = Properties(self)
        self.etcd.on_change = self.properties.changed
        config = plan.config
        scheduler.mutex_switches = config.mutex_switches
        self.broker = Broker(scheduler, config.broker, config.visibility)
        self.broker.duplicate, self.broker.delay = config.duplicate, config.delay
        self.broker.on_publish = self.ledger.published
        self.results = Results(scheduler.sleep, lambda: 0.001 + 0.002 * self.chance.random())
        self.results.on_store = self.ledger.stored
        self._producer = Producer(lambda: self.broker)
        self.apps: dict[int, SimApp] = {}
        self.workers: list[Worker] = []
        self.producers: list[Process] = []
        self.calls: dict[int, Call] = {}

    # --- who is who -----------------------------------------------------------------------------------------------

    def app_for(self, process: Process) -> SimApp:
        config = self.plan.config
        app = APPS.take()
        settings = {
            "etcdlock_endpoints": "http://etcd:2379",
            "etcdlock_timeout": config.timeout,
            "etcdlock_ttl": config.ttl,
            "etcdlock_on_unavailable": config.on_unavailable,
            "etcdlock_done_ttl": config.done_ttl,
            "etcdlock_gate": config.gate,
            "broker_transport_options": {"visibility_timeout": config.visibility},
        }
        app.begin(settings, self._producer, self.results)
        app.define(self.plan.specs, self.run_body)
        self.apps[process.pid] = app
        link = self.etcd.link(process)
        link.lose_reply = config.lose_reply
        return app

    def wall_of(self, process: Process) -> float:
        return EPOCH + self.scheduler.now + process.wall_offset

    def spec_of(self, task: str) -> TaskSpec | None:
        return next((spec for spec in self.plan.specs if spec.name == task), None)

    def limit_of(self, name: str) -> int:
        number, _, _ = name.partition(":")
        return self.plan.specs[int(number)].limit if number.isdigit() else 1  # else one message's own

    def jobs_of(self, process: Process) -> list[str]:
        """The task ids that the process works on."""
        children = [child for worker in self.workers if hasattr(worker, "pool") for child in worker.pool.children]
        return [child.job.task_id for child in children if child.process is process and child.job is not None]

    def dies(self, process: Process) -> None:
        """By ``kill -9``."""
        self.ledger.deaths.append((self.scheduler.now, process.name))
        self.scheduler.kill(process)
        for run in list(self.ledger.running):
            if run.process is process:
                run.how, run.ended = "killed", self.scheduler.now
                self.ledger.running.remove(run)

    # --- what a body does -----------------------------------------------------------------------------------------

    def run_body(self, task: Any, name: str, script: dict[str, Any]) -> Any:
        scheduler, ledger = self.scheduler, self.ledger
        assert scheduler.current is not None
        request = task.request
        spec = self.spec_of(task.name)
        assert spec is not None
        try:
            lock: Any = current_lock()
        except NotLocked:
            lock = None
        number = request.retries + (request.replaced_task_nesting or 0)
        step = (request.retries, request.replaced_task_nesting or 0)
        run = Run(request.id, step, spec, name, scheduler.current.process, scheduler.now, scheduler.now, lock)
        ledger.runs.append(run)
        ledger.running.append(run)
        ledger.note(f"{run.process.name} runs {request.id[:8]} step {step} of {name}")
        self.coverage.hit("ran", spec.lock)
        self.properties.began(run)
        end = script["ends"][min(number, len(script["ends"]) - 1)]
        try:
            scheduler.sleep(script["work"][min(number, len(script["work"]) - 1)])
            run.how = end
            if end == "fail":
                raise ValueError("the body fails")
            if end == "retry":
                raise task.retry(countdown=script["countdown"])
            if end == "retry_quietly":
                task.retry(countdown=script["countdown"], throw=False)
                scheduler.sleep(script["after"])
                run.how = "ok"
            if end == "replace":
                task.replace(task.s(name=name, script=script))
            scheduler.sleep(script["after"] if end == "ok" else 0.0)
            return {"ran": request.id, "step": list(step)}
        except (Retry, Ignore):
            raise
        except BaseException as error:
            if not (isinstance(error, ValueError) and run.how == "fail"):
                run.how = "lost" if isinstance(error, LockLost) else f"struck by {type(error).__name__}"
            raise
        finally:
            if run in ledger.running:
                run.ended = scheduler.now
                ledger.running.remove(run)
                ledger.note(f"{run.process.name} ends {request.id[:8]} step {step}: {run.how}")

    # --- a plan's actions -----------------------------------------------------------------------------------------

    def start(self) -> None:
        config = self.plan.config
        for number in range(config.workers):
            self.workers.append(Worker(self, f"worker{number}", config.offsets[number]))
        for number in range(config.producers):
            self.producers.append(self._new_producer(number))
        director = self.scheduler.process("director")
        for action in self.plan.actions:
            self.scheduler.spawn(director, str(action), lambda action=action: self._act(action), action.at)  # type: ignore[misc]

    def _new_producer(self, number: int) -> Process:
        offset = self.plan.config.offsets[4 + number]
        process = self.scheduler.process(f"producer{number}", offset, f"host-producer{number}")
        self.app_for(process)
        return process

    def _act(self, action: Action) -> None:
        kind, what = action.kind, action.what
        self.coverage.hit("action", kind)
        if kind == "call":
            number, producer, spec, name, script, options = what
            process = self.producers[producer]
            call = Call(number, self.plan.specs[spec], f"{spec}:{name}", process, self.scheduler.now)
            self.calls[number] = call
            self.ledger.calls.append(call)
            self.scheduler.spawn(process, f"call {number}", lambda: self._call(call, script, options))
            return
        self.ledger.note(f"== {kind} {' '.join(map(str, what))}")
        getattr(self, "_" + kind.replace(" ", "_"))(*what)

    def _call(self, call: Call, script: dict[str, Any], options: dict[str, Any]) -> None:
        app = self.apps[call.producer.pid]
        task = app.celery.tasks[call.spec.name]
        self.coverage.hit("lifetime", call.spec.lock)
        self.coverage.hit("policy", f"{call.spec.enqueue}/{call.spec.run}")
        try:
            result = task.apply_async(kwargs={"name": call.name, "script": script}, **options)
            call.result_id = result.id
            call.conflict = getattr(result, "lock_conflict", None) is not None
        except Exception as error:
            call.error = error
        call.ended = self.scheduler.now
        told = call.error or (f"told of {call.result_id}" if call.conflict else f"published {call.result_id}")
        self.ledger.note(f"{call.producer.name} call {call.number} of {call.name}: {told}")
        self.coverage.hit("call", type(call.error).__name__ if call.error else "told" if call.conflict else "published")
        self.properties.called(call)

    def _with_lock(self, producer: int, name: str, wait: float, seconds: float) -> None:
        """A lock without a task, which competes with tasks for the same name."""
        process = self.producers[producer]
        locks = EtcdLocks.from_app(self.apps[process.pid].celery)

        def hold() -> None:
            try:
                with locks.lock(name, wait_timeout=wait):
                    self.scheduler.sleep(seconds)
                self.coverage.hit("standalone lock", "held")
            except EtcdLockError as error:
                self.coverage.hit("standalone lock", type(error).__name__)

        self.scheduler.spawn(process, "with lock", hold)

    def _copy(self, number: int) -> None:
        call = self.calls.get(number)
        sent = self.ledger.sent.get(call.result_id or "") if call is not None and not call.conflict else None
        if sent:
            self.broker.put(self.chance.choice(sent).message.again())

    def _forged_copy(self, number: int, headers: dict[str, Any]) -> None:
        call = self.calls.get(number)
        sent = self.ledger.sent.get(call.result_id or "") if call is not None and not call.conflict else None
        if sent:
            message = self.chance.choice(sent).message.again()
            message.headers.update(headers)
            self.ledger.forged.add(message.task_id)
            self.broker.put(message)

    def _revoke(self, number: int, terminate: bool) -> None:
        call = self.calls.get(number)
        if call is None or call.conflict or call.result_id is None:
            return
        self.ledger.revoked.add(call.result_id)
        for worker in self.workers:
            if worker.process.alive and hasattr(worker, "consumer"):
                worker.revoke(call.result_id, terminate)

    def _who(self, who: str) -> list[Process]:
        if who == "all":
            return [process for process in self.scheduler.processes.values() if process.alive]
        if who == "runner":
            return [run.process for run in self.ledger.running[:1]]
        found = [*self.producers, *(worker.process for worker in self.workers)]
        chosen = [process for process in found if process.name == who]
        for worker in self.workers:
            if worker.name == who and hasattr(worker, "pool"):
                chosen += [child.process for child in worker.pool.children]
        return chosen

    def _change_links(self, who: str, seconds: float, change: Callable[[Link], None], back: Callable[[Link], None]) -> None:
        links = [self.etcd.link(process) for process in self._who(who)]
        for link in links:
            change(link)
        self.ledger.disturbed(seconds)
        self.scheduler.sleep(seconds)
        for link in links:
            back(link)

    def _deaf(self, who: str, seconds: float) -> None:
        self._change_links(who, seconds, lambda link: setattr(link, "deaf", True), lambda link: setattr(link, "deaf", False))

    def _cut(self, who: str, seconds: float) -> None:
        self._change_links(who, seconds, lambda link: setattr(link, "cut", True), lambda link: setattr(link, "cut", False))

    def _refused(self, who: str, seconds: float) -> None:
        self._change_links(
            who, seconds, lambda link: setattr(link, "refused", True), lambda link: setattr(link, "refused", False)
        )

    def _flaky(self, who: str, seconds: float) -> None:
        def flaky(link: Link) -> None:
            link.lose_reply, link.lose_request = 0.5, 0.1

        def well(link: Link) -> None:
            link.lose_reply, link.lose_request = self.plan.config.lose_reply, 0.0

        self._change_links(who, seconds, flaky, well)

    def _late(self, who: str, seconds: float) -> None:
        self._change_links(
            who,
            seconds,
            lambda link: setattr(link, "late_request", 0.5),
            lambda link: setattr(link, "late_request", 0.0),
        )

    def _slow(self, who: str, seconds: float) -> None:
        self._change_links(
            who, seconds, lambda link: setattr(link, "latency", 0.4), lambda link: setattr(link, "latency", 0.002)
        )

    def _freeze(self, who: str, seconds: float) -> None:
        processes = self._who(who)[:1]
        for process in processes:
            self.scheduler.freeze(process)
        self.ledger.disturbed(seconds)
        self.scheduler.sleep(seconds)
        for process in processes:
            self.scheduler.thaw(process)

    def _kill_child(self) -> None:
        for run in self.ledger.running[:1]:
            for worker in self.workers:
                for child in worker.pool.children:
                    if child.process is run.process:
                        worker.pool.child_dies(child)
                        return

    def _kill_worker(self, name: str) -> None:
        number = int(name.removeprefix("worker"))
        worker = self.workers[number]
        if not worker.process.alive or not hasattr(worker, "pool"):
            return
        for child in list(worker.pool.children):
            if child.job is not None:
                self.ledger.excused[child.job.task_id] = "its worker died"
            self.dies(child.process)
        for call in worker.inbox:
            del call
        for job in worker.pool.jobs:
            self.ledger.excused.setdefault(job.task_id, "its worker died")
        self.dies(worker.process)
        self.broker.connection_lost(worker.process)
        self.workers[number] = Worker(self, name, self.plan.config.offsets[number])

    def _stop_producer(self, name: str, gently: bool) -> None:
        number = int(name.removeprefix("producer"))
        process = self.producers[number]
        app = self.apps[process.pid]
        if gently and all(call.ended is not None for call in self.ledger.calls if call.producer is process):

            def stop() -> None:
                EtcdLocks.from_app(app.celery).close()
                self.scheduler.kill(process)

            self.scheduler.spawn(process, "exit", stop)
        else:
            self.dies(process)
        self.producers[number] = self._new_producer(number)

    def _leader(self) -> None:
        self.etcd.change_leader()
        self.ledger.disturbed()

    def _compact(self) -> None:
        self.etcd.compact()

    def _broker_down(self, seconds: float) -> None:
        self.broker.down = True
        self.scheduler.sleep(seconds)
        self.broker.down = False
        self.broker._wake()

    def _connection_lost(self, name: str) -> None:
        worker = self.workers[int(name.removeprefix("worker"))]
        if hasattr(worker, "consumer"):
            worker.lose_connection()

    # --- the whole ------------------------------------------------------------------------------------------------

    def play(self) -> None:
        scheduler, properties = self.scheduler, self.properties
        began = scheduler.now

        def stop() -> bool:
            return self.violation is not None

        self.start()
        scheduler.run_until(began + BUSY_SECONDS, stop)
        scheduler.run_until(began + BUSY_SECONDS + 30, stop)
        ends_at = began + BUSY_SECONDS + ENOUGH_SECONDS + max(self.plan.config.offsets) - min(self.plan.config.offsets)
        while self.violation is None and not properties.quiet() and scheduler.now < ends_at:
            scheduler.run_until(scheduler.now + 5.0, stop)
        if self.violation is not None:
            return
        properties.check_errors()
        if not properties.quiet():
            properties.fail("quiet", f"messages are still under way: {self._under_way()}")
            return
        guardian.LOOK_SECONDS = 20.0  # little happens from here on
        scheduler.run_until(scheduler.now + 2 * self.plan.config.ttl + 20, stop)
        properties.check_messages()
        if not self.ledger.deaths:
            left = properties.left(prompt=True)
            if left:
                properties.fail("left behind", "; ".join(left))
        if self.violation is None:
            longest = max([0.0, *(spec.pending_ttl or spec.unique_for or 0.0 for spec in self.plan.specs)])
            scheduler.run_until(scheduler.now + 4 * max(longest, 64) + 80, stop)
            left = properties.left(prompt=False)
            if left:
                properties.fail("left for ever", "; ".join(left))

    def _under_way(self) -> list[str]:
        return [message.task_id for message in self.broker.queue] + [
            delivery.message.task_id for delivery in self.broker.unacked.values()
        ]


class _ProcessSignal:
    """A Celery signal as one process has it: its receivers aren't called for others."""

    def __init__(self, real: Any, world: World) -> None:
        self._real = real
        self._world = world
        self.connected: list[Any] = []

    def connect(self, receiver: Any, **options: Any) -> None:
        current = self._world.scheduler.current
        assert current is not None
        process = current.process

        def for_this_process(*args: Any, **kwargs: Any) -> Any:
            now = self._world.scheduler.current
            return receiver(*args, **kwargs) if now is not None and now.process is process else None

        self.connected.append(for_this_process)
        self._real.connect(for_this_process, weak=False)

    def disconnect_all(self) -> None:
        for receiver in self.connected:
            self._real.disconnect(receiver)

    def send(self, *args: Any, **kwargs: Any) -> Any:
        return self._real.send(*args, **kwargs)


class _Means:
    """How an interruption gets into a simulated thread: where it waits, as a signal does."""

    def __init__(self, scheduler: Scheduler) -> None:
        assert scheduler.current is not None
        self._scheduler = scheduler
        self._thread: Thread = scheduler.current

    def send(self) -> None:
        self._scheduler.throw(self._thread, lambda: interruption._next_error(id(self._thread)))

    def clear(self, others_wait: bool) -> None:
        if others_wait:
            self.send()


class _Client:
    """What the inspector asks through: the transport, with a stream that can be asked for one answer."""

    def __init__(self, transport: SimTransport) -> None:
        self.call = transport.call
        self.stream = transport.stream
        self.close = transport.close


@contextmanager
def _patched(target: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)


@contextmanager
def _level(logger: logging.Logger, level: int) -> Iterator[None]:
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Warnings(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "wait_timeout is longer" in text:
            return  # speaks of all tasks of an app, and so of earlier runs'
        current = self._world.scheduler.current
        self._world.ledger.note(f"{current.process.name if current else '?'} logs: {text[:250]}")
        for task_id in self._world.ledger.sent:
            if task_id in text and ("can't be marked as ended" in text or "runs although nobody can say" in text):
                self._world.ledger.unmarked.add(task_id)
            if task_id in text and "runs WITHOUT its lock" in text:
                self._world.ledger.unprotected.add(task_id)
        if ("couldn't be left to stand" in text or "is lost:" in text) and current is not None:
            # What a run leaves to its retry is released where the store can't be asked, and it says so; a lock that was
            # lost, or that a newer call asked for, isn't left to anybody.
            self._world.ledger.forfeited.update(self._world.jobs_of(current.process))
        if record.exc_info and record.levelno >= logging.ERROR:
            error = record.exc_info[1]
            self._world.ledger.note(f"    {error!r}")


@contextmanager
def _in_place(world: World) -> Iterator[None]:
    scheduler = world.scheduler

    def transport() -> SimTransport:
        assert scheduler.current is not None
        return SimTransport(world.etcd, scheduler.current.process, scheduler, world.chance)

    def open_stores(settings: Any) -> Any:
        history = History()
        tasks, renewal = (EtcdStore(transport(), settings.prefix, history=history) for _ in range(2))
        return GroupCommit(tasks), renewal

    def open_inspector(settings: Any) -> Any:
        return EtcdInspector(_Client(transport()), settings.prefix, settings.timeout)  # type: ignore[arg-type]

    def state_of(pid: int) -> Any:
        process = scheduler.processes.get(pid)
        if process is None or not process.alive:
            return guardian._State.GONE
        return guardian._State.STOPPED if process.frozen else guardian._State.RUNS

    real_hold = session.Session.hold

    def hold(self: Any, lock: Any) -> None:
        real_hold(self, lock)
        world.properties.held(lock)

    per_process = [
        (module, name, _ProcessSignal(getattr(module, name), world))
        for module, name in (
            (never_started, "task_revoked"),
            (never_started, "task_rejected"),
            (never_started, "task_unknown"),
            (never_started, "revoked"),
            (gate, "task_received"),
            (gate, "revoked"),
        )
    ]
    logger = logging.getLogger("celery_etcdlock")
    handler = _Warnings(world)
    with ExitStack() as stack:
        for target, name, value in (
            (runtime, "open_stores", open_stores),
            (runtime, "host_name", lambda: scheduler.current.process.host if scheduler.current else "?"),
            (gate, "open_inspector", open_inspector),
            (guardian, "_state", state_of),
            (guardian, "LOOK_SECONDS", 0.5),
            (lease_page, "PAGE_BYTES", 1 << 11),
            (interruption, "_means_here", lambda: _Means(scheduler)),
            (session.Session, "hold", hold),
            (interruption, "_armed", {}),
            *per_process,
        ):
            stack.enter_context(_patched(target, name, value))
        # As in a worker, where Celery's own __call__ keeps the message's request.
        trace._install_stack_protection()
        stack.callback(trace.reset_worker_optimizations, SimpleNamespace())
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)
        stack.enter_context(_patched(logger, "propagate", False))
        stack.enter_context(_level(logging.getLogger("celery"), logging.CRITICAL + 1))
        for _, _, signal in per_process:
            stack.callback(signal.disconnect_all)
        yield


def play(plan: Plan, coverage: Coverage | None = None) -> Outcome:
    """Run the plan to its end, or to the first violation."""
    coverage = coverage or Coverage()
    scheduler = Scheduler(plan.seed)
    _State.present = None
    from celery.worker import state as worker_state

    worker_state.reset_state()
    with simulated(scheduler):
        world = World(plan, scheduler, coverage)
        with _in_place(world):
            try:
                world.play()
            finally:
                scheduler.finish()
                APPS.give_back()
                worker_state.reset_state()
                _State.present = None
    return Outcome(plan, world.violation, world.ledger.lines, coverage, scheduler.steps, scheduler.now - 1000)
