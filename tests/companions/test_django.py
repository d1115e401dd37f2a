"""Django: its task class, calls on commit, results in the database, beat's schedule in the database."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_etcdlock import EtcdLocks, SingletonTask, current_lock, singleton_task
from tests.companions.packages import package
from tests.unit.tasks.lab import messages, run_message

django = package("django")
conf = package("django.conf")
package("django_celery_beat")
package("django_celery_results")
_names = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def database(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("django") / "db"
    conf.settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(file)}},
        INSTALLED_APPS=["django_celery_beat", "django_celery_results"],
        USE_TZ=True,
    )
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    monkeypatch.delenv("ETCDLOCK_ENDPOINTS", raising=False)
    app = Celery(
        f"django{next(_names)}",
        broker="memory://",
        task_cls="celery.contrib.django.task:DjangoTask",  # as Celery's fixup sets it
        set_as_current=False,
    )
    app.conf.update(etcdlock_endpoints="memory://", result_backend="django-db", result_extended=True)
    messages(app)
    yield app
    EtcdLocks.from_app(app).close()


def test_a_call_on_commit_takes_its_lock_at_the_commit(app: Celery) -> None:
    from django.db import transaction

    task: Any = singleton_task(app=app, name="task", shared=False, lock="until_executed")(lambda_body())
    locks = EtcdLocks.from_app(app)
    with transaction.atomic():
        task.delay_on_commit()
        assert not locks.holders("task")
        assert not messages(app)
    assert locks.holders("task")
    [message] = messages(app)
    run_message(app, message)
    assert app.AsyncResult(message.headers["id"]).get(timeout=5) == "task"
    assert not locks.holders("task")
    with transaction.atomic():
        task.delay_on_commit()
        transaction.set_rollback(True)
    assert not locks.holders("task")
    assert not messages(app)


def test_results_in_the_database(app: Celery) -> None:
    from django_celery_results.models import TaskResult

    task: Any = singleton_task(app=app, name="task", shared=False)(lambda_body())
    for state in ("SUCCESS", "REVOKED"):
        task.delay()
        [message] = messages(app)
        if state == "REVOKED":
            with EtcdLocks.from_app(app).lock("task"):
                run_message(app, message)
        else:
            run_message(app, message)
        stored = TaskResult.objects.get(task_id=message.headers["id"])
        assert (stored.status, stored.task_name) == (state, "task")


def test_beat_with_its_schedule_in_the_database(app: Celery) -> None:
    from django_celery_beat.models import IntervalSchedule, PeriodicTask
    from django_celery_beat.schedulers import DatabaseScheduler

    singleton_task(app=app, name="proj.periodic", shared=False, lock="until_executed")(lambda_body())
    app.finalize()
    every, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
    long_ago = datetime.datetime.now(tz=datetime.timezone.utc) - datetime.timedelta(minutes=5)
    PeriodicTask.objects.create(name="it", task="proj.periodic", interval=every, last_run_at=long_ago)
    scheduler = DatabaseScheduler(app=app)
    entry = scheduler.schedule["it"]
    first = scheduler.apply_async(entry, advance=False)
    second = scheduler.apply_async(entry, advance=False)
    assert first.id == second.id  # the first is queued still
    [message] = messages(app)
    assert message.headers["periodic_task_name"] == "it"
    run_message(app, message)
    assert scheduler.apply_async(entry, advance=False).id != first.id


def test_ours_as_a_base_says_what_it_leaves_out(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    base = type("Mine", (SingletonTask,), {"abstract": True})
    assert not hasattr(app.task(base=base, name="task", shared=False)(lambda_body()), "delay_on_commit")
    assert "leaves out the app's own task class DjangoTask" in caplog.text


def lambda_body() -> Any:
    def body() -> str:
        return current_lock().name

    return body
