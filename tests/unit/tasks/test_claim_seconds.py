"""For how long the lock of a message stands that hasn't started: until it is due, or expires, and a while longer."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery

from celery_etcdlock import SingletonTask
from celery_etcdlock.tasks.producer.publish import claim_seconds

HOUR = 3600.0


def seconds(call: dict[str, Any], **options: Any) -> float:
    app = Celery("claims", broker="memory://", set_as_current=False)
    options = {"lock": "until_executed"} | options

    @app.task(base=SingletonTask, name="report", shared=False, **options)
    def report() -> None: ...

    app.finalize()
    task = app.tasks["report"]
    return claim_seconds(task, task._lock_plan, task._get_exec_options() | call)


def from_now(after: float) -> datetime:
    return datetime.now(timezone.utc) + timedelta(seconds=after)


@pytest.mark.parametrize(
    ("call", "options", "expected"),
    [
        ({}, {}, HOUR),
        ({"countdown": 60}, {}, HOUR + 60),
        ({"countdown": None, "eta": None, "expires": None}, {}, HOUR),
        ({"countdown": 60}, {"pending_ttl": 10}, 70),
        ({"expires": 90}, {}, 90),
        ({"expires": 90.5, "countdown": 60}, {}, 90.5),
        ({}, {"expires": 90}, 90),
        ({"expires": 20}, {"expires": 90}, 20),
        ({"expires": 90}, {"pending_ttl": 10}, 10),
        ({"expires": 90, "countdown": 60}, {"pending_ttl": 40}, 90),
        ({"expires": -5}, {}, 1),
        ({"countdown": 60}, {"lock": "until_expired", "unique_for": 7}, 7),
    ],
)
def test_by_seconds(call: dict[str, Any], options: dict[str, Any], expected: float) -> None:
    assert seconds(call, **options) == expected


@pytest.mark.parametrize("write", [lambda when: when, datetime.isoformat, lambda when: when.replace(tzinfo=None)])
def test_by_dates(write: Any) -> None:
    assert seconds({"eta": write(from_now(60))}) == pytest.approx(HOUR + 60, abs=5)
    assert seconds({"eta": write(from_now(60))}, pending_ttl=10) == pytest.approx(70, abs=5)
    assert seconds({"expires": write(from_now(60))}) == pytest.approx(60, abs=5)
    assert seconds({"eta": write(from_now(-60))}) == HOUR
    assert seconds({"expires": write(from_now(-60))}) == 1


def test_a_date_elsewhere_on_earth_is_the_same_moment() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert seconds({"eta": from_now(60).astimezone(tokyo)}) == pytest.approx(HOUR + 60, abs=5)
    assert seconds({"eta": from_now(60).isoformat().replace("+00:00", "Z")}) == pytest.approx(HOUR + 60, abs=5)
