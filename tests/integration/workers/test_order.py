"""In what order things happen, as docs/semantics.md says; and that messages which never start free their locks."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_etcdlock import EtcdLocks
from celery_etcdlock.core.lifetimes import LIFETIMES
from celery_etcdlock.tasks.execution import retry_state
from tests.etcd_server import EtcdServer
from tests.integration.workers.conftest import Project
from tests.redis_server import RedisServer
from tests.waiting import wait_for

PAGE = Path(__file__).parents[3] / "docs" / "semantics.md"
#: Those of a message that is done with.
LAST = "task_postrun"


@pytest.fixture(scope="module")
def project(redis: RedisServer, etcd: EtcdServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(
        redis.url(0),
        redis.url(1),
        etcd.endpoint,
        tmp_path_factory.mktemp("order"),
        module="tests.integration.workers.order_app",
    )
    project.start_worker("-P", "solo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_LOG", str(project.bodies.path))  # what is published here is written down too
        yield project
    project.close()


def rows() -> dict[tuple[str, str], str]:
    """What the page says, by lifetime and by what happens."""
    text = PAGE.read_text().split("## In what order things happen")[1].split("\n## ")[0]
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].strip("`") in LIFETIMES:
            found[cells[0].strip("`"), cells[1]] = cells[2]
    return found


@pytest.mark.parametrize(("lifetime", "what"), rows())
def test_it_happens_in_the_order_that_the_page_says(project: Project, lifetime: str, what: str) -> None:
    if "stored RETRY" in rows()[lifetime, what] and retry_state._ignores_result is None:
        pytest.skip("with this Celery, RETRY is stored by itself")
    seen = happen(project, lifetime, what)
    print(f"| `{lifetime}` | {what} | {seen} |")
    assert seen == rows()[lifetime, what]


def test_the_page_has_each_lifetime() -> None:
    assert {lifetime for lifetime, _ in rows()} == set(LIFETIMES)


def happen(project: Project, lifetime: str, what: str) -> str:
    policy = "retry" if what == "conflict, sent back" else "skip"
    task = project.module.TASKS[lifetime, policy]
    locks = EtcdLocks.from_app(project.app)
    if what.startswith("conflict"):
        with locks.lock(task.name):
            result = task.apply_async()
            events = until(project, result.id, lambda names: LAST in names)
        if policy == "retry":
            result.get(timeout=30)
        del events[names_of(events).index(LAST) + 1 :]
    else:
        result = task.apply_async(("" if what == "success" else what,))
        count = 2 if what == "retry" else 1
        events = until(project, result.id, lambda names: names.count(LAST) == count)
    return ", ".join(told(events))


def until(project: Project, task_id: str, is_over: Callable[[list[str]], bool]) -> list[dict[str, Any]]:
    def events() -> list[dict[str, Any]]:
        return [event for event in project.bodies.events() if event.get("task_id") == task_id]

    wait_for(lambda: is_over(names_of(events())), "the message is done with", 30)
    return events()


def names_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["happened"] for event in events]


def told(events: list[dict[str, Any]]) -> list[str]:
    """With the locks that are taken and freed in between."""
    steps: list[str] = []
    before: set[str] = set()
    for event in events:
        taken = set(event["taken"])
        steps += [f"**-{name}**" for name in sorted(before - taken)]
        steps += [f"**+{name}**" for name in sorted(taken - before)]
        steps.append(event["happened"])
        before = taken
    return steps


# --- messages that never start ----------------------------------------------------------------------------------------


def mangled(project: Project, number: int, mangle: Callable[[Any], tuple[Any, str, dict[str, Any]]]) -> str:
    """Take the lock of a call, and give the worker its message as ``mangle`` makes it."""
    app = project.app
    aside = f"{app.conf.task_default_queue}.aside"
    project.module.kept.apply_async((number,), queue=aside)
    with app.connection() as connection:
        queue = connection.SimpleQueue(aside)
        message = queue.get(timeout=30)
        message.ack()
        queue.close()
        body, content_type, changed = mangle(message)
        assert locked(project, number)
        with connection.Producer() as producer:
            producer.publish(
                body,
                routing_key=app.conf.task_default_queue,
                exchange="",
                headers=message.headers | changed,
                content_type=content_type,
                content_encoding="binary" if "python" in content_type else "utf-8",
                correlation_id=message.headers["id"],
            )
    return str(message.headers["id"])


def locked(project: Project, number: int) -> bool:
    return bool(EtcdLocks.from_app(project.app).holders(f"kept:{number}"))


MANGLES: dict[str, Callable[[Any], tuple[Any, str, dict[str, Any]]]] = {
    "content disallowed": lambda message: (pickle.dumps([[], {}, {}]), "application/x-python-serialize", {}),
    "can't be decoded": lambda message: (b"{no json", "application/json", {}),
    "unknown task": lambda message: (message.body, "application/json", {"task": "no.such.task"}),
    "eta out of range": lambda message: (message.body, "application/json", {"eta": "0001-01-01T00:00:00+14:00"}),
    "no eta at all": lambda message: (message.body, "application/json", {"eta": "soon"}),
    "expired": lambda message: (message.body, "application/json", {"expires": "2001-01-01T00:00:00+00:00"}),
}


@pytest.mark.parametrize("number", range(len(MANGLES)), ids=list(MANGLES))
def test_a_message_that_never_starts_frees_its_lock(project: Project, number: int) -> None:
    mangled(project, number, list(MANGLES.values())[number])
    wait_for(lambda: not locked(project, number), "the lock is free", 30)


def test_one_that_a_companion_discards_frees_its_lock(project: Project) -> None:
    project.module.discarded.delay()
    locks = EtcdLocks.from_app(project.app)
    wait_for(lambda: not locks.holders("discarded"), "the lock is free", 30)
    wait_for(lambda: "lock 'discarded' is free" in project._workers[0].text(), "the worker says so")
    assert not re.search("Traceback", project._workers[0].text().split("discarded")[-1])
