"""celery-batches: refused, since it would lose the messages of a flush that can't have its lock; and left alone."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import ImproperlyConfigured

from celery_etcdlock import InvalidOption, SingletonTask, singleton_task
from celery_etcdlock.core.dedup_rules import check_dedup
from celery_etcdlock.worker.apply_dedup import deduplicate
from tests.companions.packages import package
from tests.unit.tasks.lab import Lab

batches = package("celery_batches")


def flush(requests: Any) -> None: ...


def test_it_is_refused_with_the_remedy(lab: Lab) -> None:
    class Mine(batches.Batches):  # type: ignore[misc,name-defined]
        abstract = True
        flush_every = 2

    with pytest.raises(InvalidOption, match=r"pass what it collected to a locked task"):
        singleton_task(app=lab.app, base=Mine, name="flush", shared=False, flush_interval=1)(flush)
    for number, bases in enumerate([(SingletonTask, Mine), (Mine, SingletonTask)]):
        both: Any = type("Both", bases, {"abstract": True})
        task = lab.app.task(base=both, name=f"flush{number}", shared=False)(flush)
        with pytest.raises(InvalidOption, match="celery-batches can't be locked"):
            task.name  # noqa: B018
    lab.app._pending.clear()


def test_worker_level_dedup_leaves_it_alone_when_told_to(lab: Lab) -> None:
    lab.app.task(base=batches.Batches, name="flush", shared=False)(flush)
    lab.app.task(name="other", shared=False)(lab.body)
    with pytest.raises(ImproperlyConfigured, match="'flush': False"):
        deduplicate(lab.app, check_dedup({"*": "task_id"}))
    assert deduplicate(lab.app, check_dedup({"flush": False, "*": "task_id"})) == ["other"]
