"""A worker's pool: child processes that take jobs one at a time, run the real tracer, and may die in its midst."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError

from celery_etcdlock.app.etcd_locks import EtcdLocks
from tests.simulation.scheduler import Process, Thread

if TYPE_CHECKING:
    from tests.simulation.worker import Worker

__all__ = ["Child", "Job", "Pool"]

RESPAWN_SECONDS = 0.1


class Job:
    """One call of a tracer, with the callbacks that the MainProcess waits for."""

    def __init__(self, pool: Pool, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.pool = pool
        self.arguments = arguments
        self.options = options
        self.child: Child | None = None
        self.ready = False

    @property
    def task_id(self) -> str:
        return str(self.options["correlation_id"])

    @property
    def step(self) -> tuple[int, int]:
        """Which run of its message: after how many retries and replacements."""
        headers = self.arguments[2]
        return headers.get("retries") or 0, headers.get("replaced_task_nesting") or 0

    def terminate(self, signal: int) -> None:
        if self.child is not None and not self.ready:
            self.pool.child_dies(self.child)


class Child:
    """One pool process. Its first thread takes jobs; time limits strike there."""

    def __init__(self, pool: Pool, number: int) -> None:
        world = pool.world
        self.pool = pool
        self.process: Process = world.scheduler.process(
            f"{pool.worker.name}.child{number}", pool.worker.process.wall_offset, pool.worker.process.host
        )
        self.app = world.app_for(self.process)
        self.job: Job | None = None
        self.done_jobs = 0
        self.main: Thread = world.scheduler.spawn(self.process, "main", self._run)

    def _run(self) -> None:
        pool, scheduler = self.pool, self.pool.world.scheduler
        locks = EtcdLocks.from_app(self.app.celery)
        locks._page = EtcdLocks.from_app(pool.worker.app.celery)._page
        while True:
            while not pool.jobs:
                pool.idle.append(self.main)
                scheduler.park(None)
            job = self.job = pool.jobs.pop(0)
            job.child = self
            pool.taken(job, self)
            try:
                result = self._trace(job)
            except SoftTimeLimitExceeded:
                # It struck outside of the task: billiard's own loop reports it as the job's failure.
                result = (1, ExceptionInfo(), 0.0)
            finally:
                self.job = None
            pool.finished(job, result)
            self.done_jobs += 1
            most = pool.max_tasks_per_child
            if most and self.done_jobs >= most:
                locks.close()
                pool.child_dies(self)
                return
            scheduler.switch()

    def _trace(self, job: Job) -> tuple[int, Any, float]:
        name, task_id, request, body, _, _ = job.arguments
        args, kwargs, embed = json.loads(body)
        carried = json.loads(
            json.dumps({key: value for key, value in request.items() if key not in ("args", "kwargs")})
        )
        carried.update({"args": args, "kwargs": kwargs, "hostname": self.pool.worker.name, "is_eager": False})
        carried.update(embed or {})
        result, info, seconds, shown = self.app.tracers[name](task_id, args, kwargs, carried)
        return (1, result, seconds or 0.0) if info else (0, shown, seconds or 0.0)


class Pool:
    """What ``Request.execute_using_pool`` calls."""

    def __init__(self, worker: Worker, processes: int, max_tasks_per_child: int | None) -> None:
        self.worker = worker
        self.world = worker.world
        self.num_processes = processes
        self.max_tasks_per_child = max_tasks_per_child
        self.jobs: list[Job] = []
        #: Of children that died, until the worker has noticed.
        self.dying: list[Job] = []
        self.idle: list[Thread] = []
        self._numbers = 0
        self.children = [self._spawn() for _ in range(processes)]

    def _spawn(self) -> Child:
        self._numbers += 1
        return Child(self, self._numbers)

    # --- for Celery's requests ------------------------------------------------------------------------------------

    def apply_async(self, target: Any, args: tuple[Any, ...] = (), **options: Any) -> Job:
        job = Job(self, args, options)
        self.jobs.append(job)
        idle, self.idle = self.idle, []
        for thread in idle:
            self.world.scheduler.unpark(thread)
        return job

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        for child in self.children:
            if child.process.pid == pid:
                self.child_dies(child)

    def flush(self) -> None:
        self.jobs.clear()

    # --- what children do -----------------------------------------------------------------------------------------

    def taken(self, job: Job, child: Child) -> None:
        scheduler = self.world.scheduler
        self.world.ledger.taken.setdefault(job.task_id, scheduler.now)
        self._tell(job, job.options["accept_callback"], child.process.pid, scheduler.now)
        for soft, seconds in ((True, job.options["soft_timeout"]), (False, job.options["timeout"])):
            if seconds:
                scheduler.spawn(
                    self.worker.process,
                    "time limit",
                    lambda soft=soft, seconds=seconds: self._time_limit(job, soft, seconds),  # type: ignore[misc]
                    seconds,
                )

    def finished(self, job: Job, result: tuple[int, Any, float]) -> None:
        job.ready = True
        self._tell(job, job.options["callback"], result)
        self._release()

    def _release(self) -> None:
        self.worker.call(self.worker.semaphore.release)

    def _tell(self, job: Job, callback: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        self.worker.call(lambda: callback(*arguments, **options))

    # --- ends -----------------------------------------------------------------------------------------------------

    def _time_limit(self, job: Job, soft: bool, seconds: float) -> None:
        child = job.child
        if job.ready or child is None or child.job is not job:
            return
        world = self.world
        if soft:
            world.ledger.note(f"soft time limit strikes {child.process} in {job.task_id}")
            world.coverage.hit("fault", "soft time limit")
            world.scheduler.throw(child.main, lambda: self._strike(job, child, seconds))
            self._tell(job, job.options["timeout_callback"], True, seconds)
            return
        world.coverage.hit("fault", "hard time limit")
        job.ready = True
        error = TimeLimitExceeded(seconds)
        self._tell(job, job.options["error_callback"], _info(error))
        self._tell(job, job.options["timeout_callback"], False, seconds)
        self.child_dies(child)

    def _strike(self, job: Job, child: Child, seconds: float) -> BaseException | None:
        if child.job is not job:
            return None
        frame = sys._getframe()
        while frame is not None and frame.f_code.co_name != "run_under_lock":
            frame = frame.f_back  # type: ignore[assignment]
        if not any(run.task_id == job.task_id for run in self.world.ledger.running):
            # After the body: whether its end is marked isn't known then, as its result isn't. Before it: it never runs.
            self.world.ledger.unmarked.add(job.task_id)
            self.world.ledger.forfeited.add(job.task_id)
        if frame is None:
            self.world.ledger.excused[job.task_id] = "its soft time limit struck in Celery's own code"
        return SoftTimeLimitExceeded(seconds)

    def child_dies(self, child: Child) -> None:
        """As by ``kill -9``; the pool finds out, and makes another."""
        if not child.process.alive:
            return
        world = self.world
        world.ledger.note(f"{child.process} dies" + (f" in {child.job.task_id}" if child.job else ""))
        world.dies(child.process)
        job = child.job
        if job is not None and not job.ready:
            self.dying.append(job)
        if child in self.children:
            self.children.remove(child)
        if not self.worker.process.alive:
            return

        def found() -> None:
            if job in self.dying:
                self.dying.remove(job)
            if job is not None and not job.ready:  # a time limit may have been first
                job.ready = True
                self._tell(job, job.options["error_callback"], _info(WorkerLostError("Worker exited prematurely")))
            if job is not None:
                self._release()
            if self.worker.process.alive:
                self.children.append(self._spawn())

        world.scheduler.spawn(self.worker.process, "reaper", found, RESPAWN_SECONDS)


def _info(error: BaseException) -> ExceptionInfo:
    try:
        raise error
    except BaseException:
        return ExceptionInfo()
