"""Operators see the messages that wait by ``retry`` and ``join``, though nothing in the store stands for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_etcdlock import EtcdLocks
from celery_etcdlock.core.worker_notes import NoteKind
from celery_etcdlock.wiring import open_inspector
from tests.integration.cli.conftest import run_on
from tests.integration.workers.conftest import Project
from tests.waiting import wait_for

Counts = dict[str, tuple[int, int, int]]


@pytest.mark.parametrize(("store", "pools"), [("etcd", ["prefork", "gevent"]), ("redis", ["threads"])])
def test_commands_count_those_that_retry_and_join(
    request: pytest.FixtureRequest, new_project: Callable[..., Project], store: str, pools: list[str]
) -> None:
    places = [request.getfixturevalue("redis").url(2)] if store == "redis" else []
    project = new_project(*places, module="tests.integration.gate.tasks_app")
    module = project.module
    workers = [project.start_worker("-c", "5", "-P", pool) for pool in pools]
    tasks = {name: getattr(module, name) for name in ("retries", "joins", "waits")}
    holders = {name: task.delay("a", 0, 120.0) for name, task in tasks.items()}
    project.bodies.wait_entered(3)
    numbers = {"retries": 4, "joins": 3, "waits": 2}
    others = [tasks[name].delay("a", 1) for name, number in numbers.items() for _ in range(number)]
    names = {name: task._lock_names(("a",), {})[0] for name, task in tasks.items()}

    def counted() -> Counts:
        listed = {lock["lock"]: lock for lock in run_on(project.app, "ls", "--json").json}
        return {
            name: (len(lock["waiters"]), lock["retrying"], lock["joining"])
            for name, lock in ((name, listed[names[name]]) for name in names)
        }

    expected = {"retries": (0, 4, 0), "joins": (0, 0, 3), "waits": (2, 0, 0)}
    wait_for(lambda: counted() == expected, "all are counted", 40)

    def table() -> dict[str, list[str]]:
        first, *lines = run_on(project.app, "ls").out.splitlines()
        return {line.split()[0]: line.split()[-3:] for line in (first, *lines)}

    def told(text: str, *command: str) -> None:
        wait_for(lambda: text in run_on(project.app, *command).out, text, 40)

    # One that comes back and tries isn't waiting in that moment, so each look may miss some.
    expected_table = {
        "LOCK": ["WAITING", "RETRY", "JOIN"],
        names["retries"]: ["-", "4", "-"],
        names["joins"]: ["-", "-", "3"],
        names["waits"]: ["2", "-", "-"],
    }
    wait_for(lambda: table() == expected_table, "the table says so", 40)
    told("retrying    4 messages come back for the lock", "show", names["retries"])
    told("joining     3 messages wait for the result of its task", "show", names["joins"])
    told("locks: 3 held, 2 waiting, 4 retrying, 3 joining", "doctor")
    project.bodies.end_all()
    for result in (*holders.values(), *others):
        result.get(timeout=60)
    inspector = open_inspector(EtcdLocks.from_app(project.app).settings)
    try:
        # Warm shutdowns, with all that a worker still counts: neither leaves a note for its time to run out.
        for worker in workers:
            worker.terminate()
        for worker in workers:
            assert worker.wait_exit() == 0
        assert inspector.notes(NoteKind.WAITING) == {}
    finally:
        inspector.close()
