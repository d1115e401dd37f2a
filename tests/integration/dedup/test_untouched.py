"""Worker-level deduplication of tasks that know nothing of locks, by setting and by command line, on real workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from tests.integration.workers.conftest import Project
from tests.waiting import wait_for

UNTOUCHED = "tests.integration.dedup.untouched"
NewProject = Callable[..., Project]


def outcome(result: AsyncResult[Any]) -> object:
    return result.get(timeout=30, propagate=False)


def test_patterns_give_locks_by_name_also_to_send_task_and_own_bases(new_project: NewProject) -> None:
    setting = {"reports.based": {}, "reports.*": {"unique_on": "*"}, "mail.send": {"on_conflict": "raise"}}
    project = new_project(module=UNTOUCHED, etcdlock_dedup=setting)
    worker = project.start_worker("-c", "6")
    daily = project.app.send_task("reports.daily", ("monday", 60.0))
    based = project.app.send_task("reports.based", kwargs={"seconds": 60.0})
    mail = project.module.send.delay(60.0)
    project.bodies.wait_entered(3)
    same_day = project.app.send_task("reports.daily", kwargs={"day": "monday", "seconds": 60.0})
    assert isinstance(outcome(same_day), TaskRevokedError)
    assert isinstance(outcome(project.module.based.delay()), TaskRevokedError)
    assert "is held by task" in str(outcome(project.module.send.delay()))
    assert outcome(project.module.daily.delay("tuesday")) == "daily tuesday"
    project.bodies.end_all()
    assert outcome(daily) == "daily monday"
    assert outcome(based) == ["reports.based 0", 1]
    assert outcome(mail) == "mail"
    assert "gives locks to mail.send, reports.based, reports.daily" in worker.text()


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_by_task_id_a_message_runs_once(new_project: NewProject, pool: str) -> None:
    project = new_project(module=UNTOUCHED, etcdlock_dedup="task_id")
    project.start_worker("-c", "3", "-P", pool)
    the_one = str(uuid4())
    first = project.module.daily.apply_async(("monday", 0.5), task_id=the_one)
    for _ in range(2):
        project.app.send_task("reports.daily", ("monday", 0.5), task_id=the_one)
    assert outcome(first) == "daily monday"
    # Behind the copies in the queue; the copies that came while the first ran come back, and are done with.
    assert outcome(project.module.daily.delay("tuesday")) == "daily tuesday"
    late = project.app.send_task("reports.daily", ("monday", 0.0), task_id=the_one)
    assert outcome(project.module.retry.delay(2)) == 2
    assert outcome(late) == "daily monday"
    names = [event["name"] for event in project.bodies.events() if event["event"] == "enter"]
    assert names == ["daily monday", "daily tuesday", "retry 0", "retry 1", "retry 2"]


def test_two_workers_never_run_a_message_twice_at_once(new_project: NewProject) -> None:
    project = new_project(module=UNTOUCHED, etcdlock_dedup={"*": "task_id"})
    for _ in range(2):
        project.start_worker("-c", "2")
    the_one = str(uuid4())
    copies = [project.app.send_task("reports.daily", ("monday", 0.3), task_id=the_one) for _ in range(4)]
    assert outcome(copies[0]) == "daily monday"
    assert project.bodies.entered() == 1


@pytest.mark.parametrize(
    ("arguments", "locked"),
    [
        (["--etcdlock-dedup"], "mail.retry, mail.send, reports.based, reports.daily"),
        (["--etcdlock-dedup=reports.*,mail.send"], "mail.send, reports.based, reports.daily"),
    ],
)
def test_the_command_line_reaches_an_app_without_any_setting_of_ours(
    new_project: NewProject, arguments: list[str], locked: str
) -> None:
    project = new_project(module=UNTOUCHED)
    worker = project.start_worker(*arguments, "-c", "1")
    assert f"etcdlock_dedup gives locks to {locked}\n" in worker.text()
    assert outcome(project.module.daily.delay("monday")) == "daily monday"


def test_without_the_setting_nothing_is_locked(new_project: NewProject) -> None:
    project = new_project("127.0.0.1:1", module=UNTOUCHED)
    worker = project.start_worker("-c", "1")
    assert outcome(project.module.daily.delay("monday")) == "daily monday"
    assert "celery-etcdlock" not in worker.text()


def test_a_tasks_own_decorator_wins_and_patterns_for_nothing_are_named(new_project: NewProject) -> None:
    name = "tests.integration.workers.app.strict"
    project = new_project(etcdlock_dedup={name: {"on_conflict": "skip"}, "no.such.*": "task_id"})
    worker = project.start_worker("-c", "2")
    assert "the pattern 'no.such.*' in etcdlock_dedup applies to no task of this worker" in worker.text()
    running = project.module.strict.delay(60.0)
    project.bodies.wait_entered()
    assert type(outcome(project.module.strict.delay())).__name__ == "LockConflict"
    project.bodies.end_all()
    outcome(running)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"reports.*": {"unique_on": ["daay"]}}, "no argument of the task"),
        ({"reports.*": {"on_conflictt": "skip"}}, "unknown option 'on_conflictt' (did you mean 'on_conflict'?)"),
        ("taskid", "etcdlock_dedup must be 'task_id' or a dict"),
    ],
)
def test_a_broken_option_keeps_the_worker_from_starting(new_project: NewProject, setting: object, message: str) -> None:
    project = new_project(module=UNTOUCHED, etcdlock_dedup=setting)
    worker = project.start_worker(wait=False)
    assert worker.wait_exit() != 0
    assert message in worker.text()


def test_etcd_away_at_the_start_holds_up_only_what_is_matched(new_project: NewProject) -> None:
    project = new_project(
        "127.0.0.1:1", module=UNTOUCHED, etcdlock_dedup={"reports.*": {}}, etcdlock_timeout=0.5, etcdlock_ttl=3
    )
    project.start_worker("-c", "2")
    matched = project.module.daily.delay("monday")
    assert outcome(project.module.send.delay()) == "mail"
    assert matched.state in ("PENDING", "RETRY")
    assert [event["name"] for event in project.bodies.events()] == ["mail", "mail"]


def test_two_workers_with_other_options_for_a_task_are_warned_of(new_project: NewProject) -> None:
    project = new_project(module=UNTOUCHED)
    project.start_worker("-c", "1", "--etcdlock-dedup=reports.*")
    other = project.start_worker("-c", "1", "--etcdlock-dedup=task_id")
    expected = "task 'reports.daily' has unique_on = task_id here and '*' at worker w0@test"
    wait_for(lambda: expected in other.text(), "the difference is told")
