"""django-celery-beat's DatabaseScheduler under the guard, with a real database; run by ``test_django_beat``.

Two schedulers in this process share a store. The first dies before it wrote anything to the database.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django
from django.conf import settings

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(Path(sys.argv[1], "beat.sqlite"))}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django_celery_beat"],
    USE_TZ=True,
    TIME_ZONE="Europe/Berlin",
)
django.setup()

from celery import Celery  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks  # noqa: E402
from django_celery_beat.schedulers import DatabaseScheduler  # noqa: E402

from celery_etcdlock.beat import EtcdScheduler  # noqa: E402
from celery_etcdlock.beat import scheduler as scheduler_module  # noqa: E402
from celery_etcdlock.locking.memory_store import MemoryStore  # noqa: E402

call_command("migrate", verbosity=0)
store = MemoryStore()
scheduler_module.open_stores = lambda settings: (store, store)
sent: list[tuple[str, str]] = []


class Sends(DatabaseScheduler):  # type: ignore[misc]
    def send_task(self, name: str, *args: Any, **options: Any) -> None:
        sent.append((name, options["headers"]["periodic_task_name"]))

    @property
    def producer(self) -> object:
        return object()


app = Celery("django-beats", broker="memory://")
app.conf.update(
    timezone="Europe/Berlin",
    etcdlock_endpoints="memory://",
    etcdlock_ttl=2,
    etcdlock_timeout=1,
    etcdlock_beat_scheduler=Sends,
)


def count(name: str) -> int:
    return sum(one == name for one, _ in sent)


def work(scheduler: EtcdScheduler, until: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline, what
        scheduler.tick()


second = IntervalSchedule.objects.create(every=1, period="seconds")
PeriodicTask.objects.create(name="often", task="often", interval=second)
PeriodicTask.objects.create(name="once", task="once", interval=second, one_off=True)

first = EtcdScheduler(app)
work(first, lambda: count("once") and count("often"), "both are sent")
first.tick()  # which confirms them
ran = PeriodicTask.objects.get(name="once")
unsynced = (ran.total_run_count, ran.enabled)
# It dies: nothing is written to the database any more.
assert first._election is not None
first._election.manager.give_up()

later = EtcdScheduler(app)
before = count("often")
work(later, lambda: count("often") >= before + 3, "the other goes on")
once_after_failover = count("once")
work(later, lambda: not PeriodicTask.objects.get(name="once").enabled, "the one that ran is switched off")
# Somebody switches it on again.
again = PeriodicTask.objects.get(name="once")
again.enabled = True
again.save()
PeriodicTasks.changed(again)
work(later, lambda: count("once") > once_after_failover, "it runs again")
often = count("often")
later.close()
row = PeriodicTask.objects.get(name="often")
print(
    json.dumps(
        {
            "unsynced": unsynced,
            "once_after_failover": once_after_failover,
            "once_in_the_end": count("once"),
            "often": often,
            "often_in_database": row.total_run_count,
        }
    )
)
