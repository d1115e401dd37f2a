"""The app whose tasks the worker tests run. All it needs to know comes by environment: each test has its own."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import threading
import time
from typing import Any

from celery import Celery, Task
from celery.signals import worker_before_create_process

from celery_etcdlock import LockConflict, LockLost, SingletonTask, current_lock, singleton_task

app = Celery(os.environ["TEST_APP_NAME"], broker=os.environ["TEST_BROKER"], backend=os.environ["TEST_BACKEND"])
app.conf.update(
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    task_default_queue=os.environ["TEST_APP_NAME"],
    worker_enable_remote_control=bool(os.environ.get("TEST_REMOTE_CONTROL")),
    broker_transport_options=json.loads(os.environ.get("TEST_TRANSPORT_OPTIONS", "{}")),
    **json.loads(os.environ.get("TEST_SETTINGS", "{}")),
)
#: Not shared: the test process makes one such app after the other.
task = functools.partial(app.task, shared=False)


def note(**what: Any) -> None:
    """One line in the log of bodies: a single append, so that lines of several processes don't mix."""
    line = json.dumps({"at": time.monotonic(), "pid": os.getpid(), **what}) + "\n"
    descriptor = os.open(os.environ["TEST_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def note_threads(**_: Any) -> None:
    note(event="fork", threads=[thread.name for thread in threading.enumerate()])


if os.environ.get("TEST_NOTE_THREADS"):
    worker_before_create_process.connect(note_threads, weak=False)


def body(seconds: float) -> int:
    """Stay inside the lock for a while, on record."""
    lock = current_lock()
    note(event="enter", name=lock.name, token=lock.fencing_token)
    try:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and not os.path.exists(os.environ["TEST_LOG"] + ".end"):
            time.sleep(0.01)
    finally:
        note(event="exit", name=lock.name, token=lock.fencing_token, lost=lock.lost)
    return lock.fencing_token


@singleton_task(app=app, shared=False)
def single(seconds: float = 0.0) -> int:
    return body(seconds)


@task(base=SingletonTask, unique_on=["key"], on_conflict="retry")
def per_key(key: str, seconds: float = 0.0, *, note: str = "") -> int:
    return body(seconds)


@task(base=SingletonTask, on_conflict="raise")
def strict(seconds: float = 0.0) -> int:
    return body(seconds)


@task(base=SingletonTask, on_conflict="retry", wait_timeout=1.0)
def impatient(seconds: float = 0.0) -> int:
    return body(seconds)


@task(base=SingletonTask, bind=True, max_retries=5)
def retries(self: Any, times: int) -> int:
    body(0.0)
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return int(self.request.retries)


@task(base=SingletonTask, autoretry_for=(ValueError,), retry_backoff=False, default_retry_delay=0, max_retries=5)
def autoretried(path: str) -> str:
    body(0.0)
    if not os.path.exists(path):
        with open(path, "w"):
            raise ValueError("not yet")
    return "done"


@task(base=SingletonTask)
def fails() -> None:
    body(0.0)
    raise ValueError("on purpose")


@task(base=SingletonTask, on_lock_lost="flag")
def flagged(seconds: float = 0.0) -> bool:
    body(seconds)
    return current_lock().lost


@task(base=SingletonTask, autoretry_for=(LockLost,), retry_backoff=False, default_retry_delay=0, max_retries=5)
def retried_when_lost(seconds: float = 0.0) -> int:
    return body(0.0 if retried_when_lost.request.retries else seconds)


@task(
    base=SingletonTask,
    bind=True,
    lock="until_executed",
    **({"retry_on_worker_lost": True} if hasattr(Task, "retry_on_worker_lost") else {}),
    default_retry_delay=0,
    max_retries=2,
)
def retried_when_dead(self: Any, seconds: float) -> int:
    """Celery 5.7 publishes its retry when its process has died."""
    return body(0.0 if self.request.retries else seconds)


@task(base=SingletonTask)
def sleeps_in_one_go(seconds: float) -> None:
    note(event="enter", name=current_lock().name, token=current_lock().fencing_token)
    time.sleep(seconds)


@task(base=SingletonTask, on_conflict="raise")
def hogs(seconds: int) -> float:
    """Keeps the interpreter's lock in a C call, so that no other thread of the process runs."""
    lock = current_lock()
    note(event="enter", name=lock.name, token=lock.fencing_token)
    ctypes.PyDLL(None).sleep(seconds)
    lost = lock.lost
    note(event="exit", name=lock.name, token=lock.fencing_token, lost=lost)
    lock.check()
    return lock.remaining


@task(base=SingletonTask, unique_on=["key"], on_conflict="retry", acks_late=True, reject_on_worker_lost=True)
def late(key: str, seconds: float = 0.0) -> int:
    return body(seconds)


@task(base=SingletonTask, bind=True, acks_late=True, max_retries=5)
def retries_before_its_end(self: Any) -> int:
    """Publishes its retry, then goes on for a while."""
    if self.request.retries == 0:
        self.retry(countdown=0, throw=False)
    return body(1.0 if self.request.retries == 0 else 0.0)


@task(base=SingletonTask, bind=True)
def replaces_before_its_end(self: Any) -> None:
    try:
        self.replace(replacement.si())
    finally:
        body(1.0)


@task(base=SingletonTask, lock_key=f"{__name__}.replaces_before_its_end")
def replacement() -> int:
    return body(0.0)


@task(base=SingletonTask)
def stubborn(seconds: float) -> None:
    """Takes its time when it is told to end."""
    try:
        body(seconds)
    finally:
        time.sleep(1.0)


out_of_time = task(base=SingletonTask, name=f"{__name__}.out_of_time", time_limit=1)(stubborn.run)


@task(base=SingletonTask)
def forks() -> None:
    """Forks a process that leaves the lock of ``forks_inside`` as its parent does, only earlier."""
    try:
        forks_inside()
    except SystemExit:
        os._exit(0)


@task(base=SingletonTask)
def forks_inside() -> None:
    child = os.fork()
    if child == 0:
        raise SystemExit(0)
    os.waitpid(child, 0)
    body(60.0)


@task(base=SingletonTask, bind=True)
def calls_itself_directly(self: Any, depth: int = 1) -> str:
    outer = current_lock().fencing_token
    if depth == 0:
        return "inner ran"
    try:
        return str(calls_itself_directly(depth - 1))
    except LockConflict as conflict:
        assert current_lock().fencing_token == outer
        return f"conflict with {conflict.holder.split(' ')[1]}, I am {self.request.id}"


@task(base=SingletonTask)
def calls_another_directly() -> list[str]:
    outer = current_lock().name
    other = str(called_directly())
    return [outer, other, current_lock().name]


@task(base=SingletonTask)
def called_directly() -> str:
    return current_lock().name


@task(base=SingletonTask, bind=True)
def replaces_itself(self: Any) -> int:
    body(0.0)
    return int(self.replace(single.si(0.0)))


@task(base=SingletonTask, unique_on=["value"])
def takes_anything(value: Any) -> str:
    return current_lock().name


@task(base=SingletonTask, lock_key=lambda key: 1 / 0)
def bad_key(key: str) -> None:
    body(0.0)


@task()
def plain(*args: Any) -> str:
    return "plain"


@task()
def follows(given: Any, label: str) -> None:
    """What is linked to another task, by ``link`` or ``link_error``."""
    note(event="follows", label=label, given=given)


def free_body(
    self: Any, key: str, seconds: float = 0.0, value: object = None, fail: bool = False, retry_once: bool = False
) -> Any:
    """As ``body``, with or without a lock around it. Returns ``value`` or its own task id."""
    if retry_once and self.request.retries == 0:
        raise self.retry(countdown=0)
    note(event="enter", name=key, token=0, value=value)
    try:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and not os.path.exists(os.environ["TEST_LOG"] + ".end"):
            time.sleep(0.05)
        if fail:
            raise ValueError("on purpose")
    finally:
        note(event="exit", name=key, token=0, value=value)
    return value if value is not None else self.request.id


def make(lifetime: str, policy: Any, label: str = "", **options: Any) -> Any:
    """The task of one lifetime and policy, one lock for each ``key``."""
    if lifetime == "until_expired":
        options.setdefault("unique_for", 8 if policy in ("retry", "wait") else 60)
    name = f"table.{lifetime}.{label or policy}"
    options.setdefault("lock_key", name + ":{key}")
    return task(base=SingletonTask, bind=True, name=name, lock=lifetime, on_conflict=policy, **options)(free_body)


LIFETIMES = ("while_executing", "until_executing", "until_executed", "until_and_while_executing", "until_expired")
POLICIES = ("skip", "raise", "retry", "wait", "join", "replace")
TABLE = {
    (lifetime, policy): make(lifetime, policy, wait_timeout=20.0)
    for lifetime in LIFETIMES
    for policy in POLICIES
    if not (lifetime == "until_executing" and policy in ("retry", "wait"))
    and not (lifetime == "until_expired" and policy == "replace")
}
newest = make("until_and_while_executing", {"enqueue": "replace", "run": "wait"}, "newest")
chosen = make("until_executed", lambda conflict: "raise" if conflict.task_id else "skip", "chosen")
two_at_once = make("while_executing", "wait", "two_at_once", lock_limit=2)
two_queued = make("until_executed", "skip", "two_queued", lock_limit=2)
held_on = make("while_executing", "raise", "held_on", lock_at_least_for=2)
at_least_queued = make("until_executed", "skip", "at_least_queued", lock_at_least_for=600)
both_queued = make("until_executed", "skip", "both_queued", lock_key=["both:{key}:left", "both:{value}:right"])
short_lived = make("until_executed", "skip", "short_lived", pending_ttl=1)


@task(base=SingletonTask, lock_key=["account:{left}", "account:{right}"], on_conflict="retry")
def transfer(left: str, right: str, seconds: float = 0.0) -> str:
    body(seconds)
    return current_lock().name


@task(base=SingletonTask, lock="until_executed", bind=True, max_retries=3, unique_on=["key"])
def retried(self: Any, key: str, times: int = 1, seconds: float = 0.5) -> int:
    body(0.0)
    if self.request.retries < times:
        raise self.retry(countdown=seconds)
    return int(self.request.retries)


@task(base=SingletonTask, lock="until_executed", bind=True, unique_on=["key"])
def replaced_by_itself(self: Any, key: str, again: bool = True) -> str:
    body(0.0)
    if again:
        return str(self.replace(replaced_by_itself.si(key, False)))
    return "the replacement"


def peer_body(self: Any, a: int, b: int = 0, seconds: float = 0.0, fail: bool = False) -> str:
    return str(free_body(self, f"peer {a}", seconds, None, fail))


def peer(name: str, **options: Any) -> Any:
    """A task with another package's options, mapped as ``docs/migrating.md`` says."""
    return task(base=SingletonTask, bind=True, name=f"peer.{name}", **options)(peer_body)


once = peer("once", lock="until_executed", unique_on="*", on_conflict="raise")
once_graceful = peer("once_graceful", lock="until_executed", unique_on="*", on_conflict="skip")
once_keys = peer("once_keys", lock="until_executed", unique_on=["a"], on_conflict="skip")
once_before_run = peer("once_before_run", lock="until_executing", unique_on="*", on_conflict="raise")
singleton = peer("singleton", lock="until_executed", unique_on="*")
singleton_on = peer("singleton_on", lock="until_executed", unique_on=["a"])
