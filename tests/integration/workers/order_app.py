"""An app that writes down what happens to its tasks, in order, and at each step which of their locks are taken."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery, Task, signals

from celery_etcdlock import EtcdLocks, singleton_task

__all__ = ["TASKS", "app"]

# An app of its own: that of the other tests may be in this process already, for another queue.
app = Celery(os.environ["TEST_APP_NAME"], broker=os.environ["TEST_BROKER"], backend=os.environ["TEST_BACKEND"])
app.conf.update(
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    task_default_queue=os.environ["TEST_APP_NAME"],
    worker_enable_remote_control=False,
    **json.loads(os.environ.get("TEST_SETTINGS", "{}")),
)

LIFETIMES: dict[str, dict[str, Any]] = {
    "while_executing": {},
    "until_executing": {},
    "until_executed": {},
    "until_and_while_executing": {},
    "until_expired": {"unique_for": 60},
}


def note(**what: Any) -> None:
    """One line, in one append: what is published is written down in another process."""
    descriptor = os.open(os.environ["TEST_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, (json.dumps(what) + "\n").encode())
    finally:
        os.close(descriptor)


def tell(what: str, task_name: str, task_id: str) -> None:
    """The lock of each task has the task's name. Of other apps' tasks in this process nothing is told."""
    if task_name not in app.tasks or "TEST_LOG" not in os.environ:
        return
    locks = EtcdLocks.from_app(app)
    taken = {
        name: bool(locks.holders(f"{task_name}{suffix}")) for name, suffix in (("lock", ""), ("queued", ":queued"))
    }
    note(happened=what, task_id=task_id, taken=[name for name, is_taken in taken.items() if is_taken])


@signals.before_task_publish.connect
def _published(sender: str = "", headers: Any = None, **_: Any) -> None:
    if not headers.get("retries"):
        tell("published", sender, headers["id"])


@signals.task_received.connect
def _received(request: Any = None, **_: Any) -> None:
    tell("received", request.task.name, request.id)


@signals.task_prerun.connect
def _prerun(task_id: str = "", task: Any = None, **_: Any) -> None:
    tell("task_prerun", task.name, task_id)


@signals.task_postrun.connect
def _postrun(task_id: str = "", task: Any = None, **_: Any) -> None:
    tell("task_postrun", task.name, task_id)


@signals.task_success.connect
def _success(sender: Any = None, **_: Any) -> None:
    tell("task_success", sender.name, sender.request.id)


@signals.task_failure.connect
def _failure(sender: Any = None, task_id: str = "", **_: Any) -> None:
    tell("task_failure", sender.name, task_id)


@signals.task_retry.connect
def _retry(sender: Any = None, request: Any = None, **_: Any) -> None:
    tell("task_retry", sender.name, request.id)


@signals.celeryd_init.connect
def _watch_backend(**_: Any) -> None:
    backend = app.backend
    store_result = backend.store_result

    def told(task_id: str, result: Any, state: str, *args: Any, request: Any = None, **kwargs: Any) -> Any:
        stored = store_result(task_id, result, state, *args, request=request, **kwargs)
        tell(f"stored {state}", getattr(request, "task", None) or "unknown", task_id)
        return stored

    backend.store_result = told


class Told(Task):  # type: ignore[type-arg]
    abstract = True

    def before_start(self, task_id: str, *_: Any) -> None:
        tell("before_start", self.name, task_id)

    def on_success(self, value: Any, task_id: str, *_: Any) -> None:
        tell("on_success", self.name, task_id)

    def on_failure(self, error: Any, task_id: str, *_: Any) -> None:
        tell("on_failure", self.name, task_id)

    def on_retry(self, error: Any, task_id: str, *_: Any) -> None:
        tell("on_retry", self.name, task_id)

    def after_return(self, status: str, value: Any, task_id: str, *_: Any) -> None:
        tell("after_return", self.name, task_id)


def define(lifetime: str, policy: str, options: dict[str, Any]) -> Any:
    name = f"{lifetime}.{policy}"

    @singleton_task(
        app=app,
        shared=False,
        base=Told,
        bind=True,
        name=name,
        lock=lifetime,
        lock_key=name,
        on_conflict={"enqueue": "skip", "run": policy} if lifetime == "until_and_while_executing" else policy,
        max_retries=1,
        **options,
    )
    def task(self: Any, what: str = "") -> None:
        tell("BODY", name, self.request.id)
        if what == "failure":
            raise ValueError("on purpose")
        if what == "retry" and not self.request.retries:
            raise self.retry(countdown=0)

    return task


TASKS = {
    (lifetime, policy): define(lifetime, policy, options)
    for lifetime, options in LIFETIMES.items()
    for policy in ("skip", "retry")
    if policy == "skip" or "while" in lifetime
}


class Discards(Task):  # type: ignore[type-arg]
    """A companion's, whose strategy acknowledges what it doesn't want."""

    abstract = True

    def Strategy(self, task: Any, app: Celery, consumer: Any) -> Any:
        def handle(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **_: Any) -> None:
            message.ack()

        return handle


@singleton_task(app=app, shared=False, name="discarded", base=Discards, lock="until_executed", lock_key="discarded")
def discarded() -> None: ...


@singleton_task(app=app, shared=False, name="kept", lock="until_executed", lock_key="kept:{number}")
def kept(number: int) -> None: ...
