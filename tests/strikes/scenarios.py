"""What is struck at every place: all that takes, holds and releases a lock; and what must hold afterwards."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from unittest import mock

from celery import group
from celery.exceptions import Ignore, Reject, Retry

from celery_etcdlock import LockConflict, SingletonTask, current_lock
from celery_etcdlock.tasks.entry.call_path import innermost
from celery_etcdlock.tasks.execution import lost_result
from tests.strikes.process import App, Process
from tests.strikes.striker import Strike, Striker

#: Makes ready, in a fresh process, what is then struck.
Scenario = Callable[[App, Process], Callable[[], object]]


def warm(process: Process) -> None:
    """With a session, as all but the first lock of a process."""
    process.acquire_and_release("warm")


class Failed(Exception):
    pass


def fails(n: int = 0) -> None:
    raise Failed


def first_lock(app: App, process: Process) -> Callable[[], object]:
    process.write_leases_down()
    return app.tasks.ok


def lock(app: App, process: Process) -> Callable[[], object]:
    warm(process)
    return app.tasks.ok


def failing_body(app: App, process: Process) -> Callable[[], object]:
    warm(process)
    return app.tasks.failing


def several_locks(app: App, process: Process) -> Callable[[], object]:
    warm(process)
    return app.tasks.several


def conflict(app: App, process: Process) -> Callable[[], object]:
    process.kept = (process.acquire("name"),)
    return app.tasks.ok


def lost_reply(app: App, process: Process) -> Callable[[], object]:
    warm(process)
    process.etcd.lose_replies = 1
    return app.tasks.ok


def lost_reply_of_release(app: App, process: Process) -> Callable[[], object]:
    warm(process)

    def body() -> None:
        process.etcd.lose_replies = 1

    app.tasks.body = body
    return app.tasks.calls_body


def least_hold(app: App, process: Process) -> Callable[[], object]:
    warm(process)
    return app.tasks.held_for_a_while


def nested(app: App, process: Process) -> Callable[[], object]:
    warm(process)
    app.tasks.body = app.tasks.other
    return app.tasks.calls_body


def call(app: App, process: Process) -> Callable[[], object]:
    warm(process)
    return app.tasks.queued.delay


def first_call(app: App, process: Process) -> Callable[[], object]:
    return app.tasks.queued.delay


def call_in_place_of_another(app: App, process: Process) -> Callable[[], object]:
    app.tasks.replacing.delay()
    return app.tasks.replacing.delay


def calls_of_a_group(app: App, process: Process) -> Callable[[], object]:
    warm(process)
    return group(app.tasks.queued_by_number.s(n) for n in range(3)).apply_async


def message(app: App, process: Process) -> Callable[[], object]:
    app.tasks.queued.delay()
    [found] = app.messages()
    return lambda: app.run(found)


def message_that_retries(app: App, process: Process) -> Callable[[], object]:
    app.tasks.retries.delay()
    [found] = app.messages()
    return lambda: app.run(found)


def retry(app: App, process: Process) -> Callable[[], object]:
    app.tasks.retries.delay()
    [found] = app.messages()
    with suppress(Retry):
        app.run(found)
    [again] = app.messages()
    return lambda: app.run(again)


def message_that_waits(app: App, process: Process) -> Callable[[], object]:
    process.kept = (process.acquire("name"),)
    app.tasks.waits.delay()
    [found] = app.messages()
    return lambda: app.run(found)


def message_whose_turn_it_is(app: App, process: Process) -> Callable[[], object]:
    holder = process.acquire("name")
    app.tasks.waits.delay()
    [found] = app.messages()
    with suppress(Retry):
        app.run(found)
    [again] = app.messages()
    process.manager.release(holder)
    return lambda: app.run(again)


def message_of(name: str) -> Scenario:
    """Of a task whose lock has another lifetime, or whose message is acknowledged late."""

    def scenario(app: App, process: Process) -> Callable[[], object]:
        getattr(app.tasks, name).delay()
        [found] = app.messages()
        return lambda: app.run(found)

    scenario.__name__ = f"message_{name}"
    return scenario


def copy(app: App, process: Process) -> Callable[[], object]:
    """The same message once more, after it has run and its result was lost. The wait for that takes no time."""
    app.tasks.acknowledged_late.delay()
    [found] = app.messages()
    app.run(found)
    slept: list[float] = []
    hurried = SimpleNamespace(sleep=slept.append, monotonic=lambda: time.monotonic() + sum(slept))

    def again() -> object:
        with mock.patch.object(lost_result, "time", hurried):
            return app.run(found)

    return again


#: A place that was struck in one isn't in those after it, so the ones that hold the most come first.
SCENARIOS: list[Scenario] = [
    message_of("acknowledged_late"),
    message,
    message_that_retries,
    message_whose_turn_it_is,
    first_lock,
    lock,
    failing_body,
    several_locks,
    conflict,
    lost_reply,
    lost_reply_of_release,
    least_hold,
    nested,
    call,
    first_call,
    call_in_place_of_another,
    calls_of_a_group,
    retry,
    message_that_waits,
    message_of("until_executing"),
    message_of("until_and_while_executing"),
    message_of("until_expired"),
    copy,
]


class Collects(SingletonTask[..., object]):
    def __call__(self, *args: Any, **kwargs: Any) -> object:
        gc.collect()
        return super().__call__(*args, **kwargs)


class Tasks:
    def __init__(self, app: App) -> None:
        self.body: Callable[[], object] = lambda: None

        def calls_body() -> None:
            self.body()

        def retries(self: Any) -> None:
            if not self.request.retries:
                raise self.retry(countdown=0)

        def ok(n: int = 0) -> int:
            return n

        queued = {"lock": "until_executed", "on_conflict": "skip"}
        self.ok = app.task(ok, name="ok", on_conflict="raise")
        self.other = app.task(ok, name="other", lock_key="other")
        self.failing = app.task(fails, name="failing")
        self.several = app.task(ok, name="several", lock_key=lambda n=0: ["a", "b", "c"])
        self.calls_body = app.task(calls_body, name="calls_body")
        self.calls_body_elsewhere = app.task(
            calls_body, base=Collects, name="calls_body_elsewhere", lock_key="elsewhere"
        )
        self.held_for_a_while = app.task(ok, name="held_for_a_while", lock_at_least_for=0.001)
        self.queued = app.task(ok, name="queued", **queued)
        self.queued_by_number = app.task(ok, name="queued_by_number", **queued | {"lock_key": "n:{n}"})
        self.replacing = app.task(ok, name="replacing", lock="until_executed", on_conflict="replace")
        self.retries = app.task(retries, name="retries", bind=True, **queued)
        self.waits = app.task(ok, name="waits", on_conflict="wait")
        for lifetime in ("until_executing", "until_and_while_executing"):
            setattr(self, lifetime, app.task(ok, name=lifetime, lock=lifetime))
        self.until_expired = app.task(ok, name="until_expired", lock="until_expired", unique_for=5)
        self.acknowledged_late = app.task(ok, name="acknowledged_late", acks_late=True, **queued)


def make_app() -> App:
    made = App()
    made.tasks = Tasks(made)
    made.app.finalize()
    return made


def strike(app: App, scenario: Scenario, striker: Striker) -> None:
    """Once, and look at what it left."""
    app.messages()
    process = Process(app)
    struck = scenario(app, process)
    outcome: object = None
    try:
        outcome = striker.run(struck)
    except (Strike, Failed, LockConflict, Ignore, Retry, Reject) as error:
        outcome = error
    # Celery tries whether an error can be pickled, and takes whatever happens for a no.
    if striker.where is not None and not striker.where.startswith("errors.py"):
        assert tells_of_strike(outcome), f"swallowed: {outcome!r}"
    del outcome  # and with it what its traceback holds
    check(app, process)


def tells_of_strike(outcome: object) -> bool:
    """Celery rejects a message whose retry can't be published, and says why."""
    told = (outcome, getattr(outcome, "__cause__", None), getattr(outcome, "reason", None))
    return any(isinstance(each, Strike) for each in told)


def check_is_locked(app: App, process: Process) -> None:
    """The next call of a task in this thread doesn't take the one that was struck for its own.

    Nor does what is left of that one change it, when it is collected.
    """
    assert innermost() is None, "a call of the same task would go through without its lock"
    held: list[str] = []
    app.tasks.body = lambda: held.extend(current_lock().name for _ in "a" if process.lock_keys())
    app.tasks.calls_body_elsewhere()
    assert held == ["elsewhere"]


def check(app: App, process: Process) -> None:
    kept = getattr(process, "kept", ())
    process.etcd.lose_replies = 0
    process.check_works()
    check_is_locked(app, process)
    process.renew()
    process.check_owes_nothing(but=kept)
    for lock in kept:
        process.manager.release(lock)
    # What stands is a message's, which frees it when it runs, or has its time.
    while True:
        messages = app.messages()
        if not messages:
            break
        for found in messages:
            with suppress(Ignore, Reject, Retry):
                app.run(found)
    process.renew()
    process.advance(10)  # more than the least hold
    for name in ("name", "other"):
        process.manager.claims.look(name)
    standing = process.lock_keys()
    assert standing == []
    process.check_owes_nothing()
