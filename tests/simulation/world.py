"""Everything together: plays a plan, and says what happened."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

from celery.exceptions import Ignore, Retry

from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.errors import LockLost, NotLocked
from celery_etcdlock.locking import child_lease_guardian
from celery_etcdlock.tasks.execution.current_lock import current_lock
from tests.simulation.ambient import simulated
from tests.simulation.apps import APPS, SimApp, TaskSpec
from tests.simulation.backend import Results
from tests.simulation.broker import Broker, Producer
from tests.simulation.coverage import Coverage
from tests.simulation.director import Director
from tests.simulation.etcd import Etcd
from tests.simulation.in_place import in_place
from tests.simulation.ledger import Ledger, Run
from tests.simulation.plan import BUSY_SECONDS, Plan
from tests.simulation.pool import Job
from tests.simulation.properties import Properties, Violation
from tests.simulation.scheduler import EPOCH, Process, Scheduler
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
        self.broker.on_gone = self.ledger.gone
        self.results = Results(scheduler.sleep, lambda: 0.001 + 0.002 * self.chance.random())
        self.results.on_store = self.ledger.stored
        self._producer = Producer(lambda: self.broker)
        self.apps: dict[int, SimApp] = {}
        self.workers: list[Worker] = []
        self.producers: list[Process] = []
        self.director = Director(self)

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
        job = self.job_of(process)
        return [] if job is None else [job.task_id]

    def job_of(self, process: Process) -> Job | None:
        """What the process works on, if it is a pool's and works."""
        children = [child for worker in self.workers if hasattr(worker, "pool") for child in worker.pool.children]
        return next((child.job for child in children if child.process is process), None)

    def is_marked(self, run: Run) -> bool:
        retries, replacements = run.step
        mark = f"/celery-etcdlock/sim/done/{escape_name(f'{run.task_id}:{retries}.{replacements}.0')}"
        return bool(self.etcd.keys(mark.encode()))

    def dies(self, process: Process) -> None:
        """By ``kill -9``."""
        for run in self.ledger.runs:
            if run.process is process and run.ended is not None and not self.is_marked(run):
                # Between the end of its body and the mark, maybe for etcd's silence: a copy takes it for one that died
                # (docs/reliability.md).
                self.ledger.unmarked.add(run.task_id)
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
        process = scheduler.current.process
        run = Run(request.id, step, spec, name, process, scheduler.now, scheduler.now, lock, self.job_of(process))
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

    # --- the whole ------------------------------------------------------------------------------------------------

    def play(self) -> None:
        scheduler, properties = self.scheduler, self.properties
        began = scheduler.now

        def stop() -> bool:
            return self.violation is not None

        self.director.start()
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
        child_lease_guardian.LOOK_SECONDS = 20.0  # little happens from here on
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


def play(plan: Plan, coverage: Coverage | None = None) -> Outcome:
    """Run the plan to its end, or to the first violation."""
    coverage = coverage or Coverage()
    scheduler = Scheduler(plan.seed)
    _State.present = None
    from celery.worker import state as worker_state

    worker_state.reset_state()
    with simulated(scheduler):
        world = World(plan, scheduler, coverage)
        with in_place(world):
            try:
                world.play()
            finally:
                scheduler.finish()
                APPS.give_back()
                worker_state.reset_state()
                _State.present = None
    return Outcome(plan, world.violation, world.ledger.lines, coverage, scheduler.steps, scheduler.now - 1000)
