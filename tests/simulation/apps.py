"""One Celery app for each process, and tasks by their options.

Apps are real, and made once: a process of a later run gets one that an earlier run is done with. A task's name says all
its options, so every app has the tasks that it needs. What a body does is a *script* in its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from celery import Celery
from celery.app.trace import build_tracer

from celery_etcdlock import SingletonTask
from celery_etcdlock.app import etcd_locks
from tests.simulation.backend import Results, SimBackend
from tests.simulation.broker import Producer

__all__ = ["Apps", "SimApp", "TaskSpec"]


@dataclass(frozen=True)
class TaskSpec:
    """The options of one task. ``enqueue`` and ``run`` are policies, ``None`` where there is none."""

    lock: str = "while_executing"
    enqueue: str | None = None
    run: str | None = "skip"
    limit: int = 1
    hold: float = 0.0
    late: bool = False
    requeue_lost: bool = False
    pending_ttl: float | None = 40.0
    unique_for: float | None = None
    wait_timeout: float = 30.0
    on_lost: str = "raise"
    soft: float | None = None
    hard: float | None = None

    @property
    def name(self) -> str:
        return "sim." + "/".join(str(getattr(self, field.name)) for field in fields(self))

    @property
    def at_enqueue(self) -> bool:
        return self.lock != "while_executing"

    @property
    def while_running(self) -> bool:
        return self.lock in ("while_executing", "until_executed", "until_and_while_executing")

    def options(self) -> dict[str, Any]:
        policies: Any = {"enqueue": self.enqueue, "run": self.run}
        if self.enqueue is None or self.run is None or self.enqueue == self.run:
            policies = self.run or self.enqueue
        options: dict[str, Any] = {
            "name": self.name,
            "base": SingletonTask,
            "bind": True,
            "lock": self.lock,
            "lock_key": "{name}",
            "lock_limit": self.limit,
            "lock_at_least_for": self.hold,
            "on_conflict": policies,
            "on_lock_lost": self.on_lost,
            "acks_late": self.late,
            "reject_on_worker_lost": self.requeue_lost,
            "max_retries": None,
            "shared": False,
            "soft_time_limit": self.soft,
            "time_limit": self.hard,
        }
        if self.at_enqueue and self.lock != "until_expired":
            options["pending_ttl"] = self.pending_ttl
        if self.lock == "until_expired":
            options["unique_for"] = self.unique_for
        options["wait_timeout"] = self.wait_timeout
        return options

    def __str__(self) -> str:
        default = TaskSpec()
        shown = {key: value for key, value in asdict(self).items() if value != getattr(default, key) or key == "lock"}
        return ", ".join(f"{key}={value}" for key, value in shown.items())


class SimApp:
    """One app, for one process at a time."""

    def __init__(self) -> None:
        app = self.celery = Celery("sim", set_as_current=False, broker="memory://", backend=SimBackend)
        app.conf.update(
            task_send_sent_event=False,
            worker_send_task_events=False,
            result_expires=None,
            task_publish_retry=False,
            broker_connection_retry_on_startup=True,
            worker_disable_rate_limits=True,
        )
        app.finalize(auto=False)
        self.tracers: dict[str, Callable[..., Any]] = {}
        self.specs: set[TaskSpec] = set()

    def begin(self, settings: dict[str, Any], producer: Producer, results: Results) -> None:
        app: Any = self.celery
        vars(app).pop(etcd_locks._ATTRIBUTE, None)
        app.conf.update(settings)
        app.backend.results = results
        app.producer_or_acquire = producer.acquired
        app.amqp._producer_pool = producer

    def define(self, specs: list[TaskSpec], run: Callable[..., Any]) -> None:
        for spec in specs:
            if spec in self.specs:
                continue
            self.specs.add(spec)

            def body(self: Any, name: str, script: dict[str, Any]) -> Any:
                return _BODIES[-1](self, name, script)

            task: Any = self.celery.task(**spec.options())(body)
            self.tracers[spec.name] = build_tracer(spec.name, self.celery.tasks[spec.name], app=self.celery)
            del task
        _BODIES[:] = [run]

    def end(self) -> None:
        for task in self.celery.tasks.values():
            task.request_stack.__release_local__()  # type: ignore[attr-defined]


#: What bodies do in the run that is under way.
_BODIES: list[Callable[..., Any]] = []


class Apps:
    """The pool of apps."""

    def __init__(self) -> None:
        self._free: list[SimApp] = []
        self._taken: list[SimApp] = []

    def take(self) -> SimApp:
        app = self._free.pop() if self._free else SimApp()
        self._taken.append(app)
        return app

    def give_back(self) -> None:
        for app in self._taken:
            app.end()
        self._free += self._taken
        self._taken = []


APPS = Apps()
