"""What a worker tells while it works: Celery events, and signals in its processes."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery
from celery.events.state import State

from celery_etcdlock import EtcdLocks
from tests.integration.workers.conftest import Project
from tests.waiting import wait_for


class Capture:
    """All Celery events of an app's broker, and the state that Flower would make of them."""

    def __init__(self, app: Celery) -> None:
        self.state = State()
        self.of: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._app = app
        self._receiver: Any = None
        self.ready = threading.Event()

    def run(self) -> None:
        with self._app.connection_for_read() as connection:
            self._receiver = self._app.events.Receiver(connection, handlers={"*": self._hear})
            for _ in self._receiver.itercapture(limit=None, timeout=None, wakeup=False):
                self.ready.set()

    def _hear(self, event: dict[str, Any]) -> None:
        self.of[event["type"]].append(event)
        self.state.event(event)

    def stop(self) -> None:
        if self._receiver is not None:
            self._receiver.should_stop = True


@contextmanager
def capture(app: Celery) -> Iterator[Capture]:
    heard = Capture(app)
    thread = threading.Thread(target=heard.run, daemon=True)
    thread.start()
    heard.ready.wait(10)
    try:
        yield heard
    finally:
        heard.stop()
        thread.join(10)


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_celery_events_tell_of_locks_and_leave_states_alone(project: Project, pool: str) -> None:
    with capture(project.app) as heard:
        project.start_worker("-c", "2", "-P", pool, "-E")
        running = project.module.single.delay(60.0)
        project.bodies.wait_entered()
        skipped = project.module.single.delay()
        skipped.get(timeout=30, propagate=False)
        wait_for(lambda: heard.of["task-deduplicated"], "the skip is told")
        with EtcdLocks.from_app(project.app).lock(project.module.per_key._lock_names(("a",), {})[0]):
            waiting = project.module.per_key.delay("a")
            wait_for(lambda: heard.of["etcdlock-waiting"], "the wait is told")
        project.bodies.end_all()
        running.get(timeout=30)
        wait_for(lambda: heard.of["etcdlock-released"] and heard.of["task-succeeded"], "the end is told")
        waiting.get(timeout=30)
    (told,) = heard.of["etcdlock-waiting"]
    assert told["uuid"] == waiting.id
    acquired, released, conflict = (
        next(event for event in heard.of[f"etcdlock-{kind}"] if event["lock"].endswith(".single"))
        for kind in ("acquired", "released", "conflict")
    )
    assert acquired["uuid"] == released["uuid"] == running.id
    assert acquired["hostname"] == "w0@test"
    assert acquired["lock"].endswith(".single")
    assert released["held_seconds"] > 0
    assert (conflict["uuid"], conflict["holder"]) == (skipped.id, running.id)
    (deduplicated,) = heard.of["task-deduplicated"]
    assert deduplicated["uuid"] == skipped.id
    assert heard.state.tasks[running.id].state == "SUCCESS"
    assert heard.state.tasks[skipped.id].state == "DEDUPLICATED"


def test_every_kind_of_duplicate_looks_as_its_result_says(project: Project) -> None:
    """What Flower shows, which knows the events alone, and what the result backend says."""
    tasks = project.module.TABLE
    with capture(project.app) as heard:
        project.start_worker("-c", "6", "-E")
        holders = {
            policy: tasks["while_executing", policy].delay("k", 60.0)
            for policy in ("skip", "raise", "join", "retry", "wait")
        }
        project.bodies.wait_entered(len(holders))
        duplicates = {policy: tasks["while_executing", policy].delay("k") for policy in holders}
        newest = project.module.newest
        queued = newest.apply_async(("k",), countdown=3)
        replacing = newest.apply_async(("k",), countdown=3)
        for policy in ("join", "retry", "wait"):
            result = duplicates[policy]
            wait_for(lambda result=result: seen(heard, result) == "RETRY", f"the {policy} duplicate waits")  # type: ignore[misc]
        project.bodies.end_all()
        results = [*holders.values(), *duplicates.values(), queued, replacing]
        for result in results:
            result.get(timeout=30, propagate=False)
        ends = {"SUCCESS", "FAILURE", "DEDUPLICATED"}
        wait_for(lambda: all(seen(heard, result) in ends for result in results), "every end is told")
        states = {policy: (result.state, seen(heard, result)) for policy, result in duplicates.items()}
    assert states == {
        "skip": ("REVOKED", "DEDUPLICATED"),
        "raise": ("FAILURE", "FAILURE"),
        "join": ("SUCCESS", "SUCCESS"),
        "retry": ("SUCCESS", "SUCCESS"),
        "wait": ("SUCCESS", "SUCCESS"),
    }
    assert (queued.state, seen(heard, queued)) == ("REVOKED", "DEDUPLICATED")
    assert (replacing.state, seen(heard, replacing)) == ("SUCCESS", "SUCCESS")
    assert {seen(heard, holder) for holder in holders.values()} == {"SUCCESS"}
    # Flower shows this, and the name of who was joined beside it; only who ran held the lock.
    joined, ran = heard.state.tasks[duplicates["join"].id], heard.state.tasks[holders["join"].id]
    assert (joined.joined, joined.result) == (holders["join"].id, f"joined {holders['join'].id}: {ran.result}")
    assert holders["join"].get() == duplicates["join"].get() == holders["join"].id
    held = [event["uuid"] for event in heard.of["etcdlock-acquired"] if event["lock"] == "table.while_executing.join:k"]
    assert held == [holders["join"].id]
    told = {event["uuid"]: event["reason"] for event in heard.of["task-deduplicated"]}
    assert set(told) == {duplicates["skip"].id, duplicates["join"].id, queued.id}
    assert f"is held by task {holders['skip'].id}" in told[duplicates["skip"].id]
    assert told[duplicates["join"].id].startswith("joined, lock 'table.while_executing.join:k' was held by task")
    assert "a newer call took its place in the queue" in told[queued.id]


def seen(heard: Capture, result: Any) -> str | None:
    task = heard.state.tasks.get(result.id)
    return task.state if task is not None else None


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_inspect_tells_the_locks_and_figures_of_a_worker(new_project: Callable[..., Project], pool: str) -> None:
    project = new_project()
    project.start_worker("-c", "3", "-P", pool, environment={"TEST_REMOTE_CONTROL": "1"})
    first, second = project.module.single.delay(60.0), project.module.per_key.delay("a", 60.0)
    project.bodies.wait_entered(2)
    project.module.single.delay().get(timeout=30, propagate=False)
    ask = project.app.control.inspect(["w0@test"], timeout=10, limit=1)
    held = ask._request("locks")["w0@test"]
    assert {lock["id"] for lock in held} == {first.id, second.id}
    assert {lock["lock"] for lock in held} == {event["name"] for event in project.bodies.events()}
    assert {lock["pid"] for lock in held} == {event["pid"] for event in project.bodies.events()}
    project.bodies.end_all()
    first.get(timeout=30)
    second.get(timeout=30)
    figures = {"acquired": 2, "released": 2, "conflicts": 1, "deduplicated": 1, "lost": 0, "held": 0}
    assert ask.stats()["w0@test"]["etcdlock"] == figures
    assert ask._request("locks")["w0@test"] == []


def test_without_events_nothing_is_sent(new_project: Callable[..., Project]) -> None:
    project = new_project()
    with capture(project.app) as heard:
        project.start_worker("-c", "1")
        project.module.single.delay().get(timeout=30)
    assert not [kind for kind in heard.of if kind.startswith("etcdlock-")]
