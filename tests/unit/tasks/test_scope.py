"""``etcdlock_scope``: two tenants with the same arguments have locks of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import pytest
from celery.exceptions import ImproperlyConfigured

from celery_etcdlock import InvalidKey, LockConflict, lock_for, singleton_task
from celery_etcdlock.errors import InvalidSetting
from celery_etcdlock.testing import hold
from celery_etcdlock.worker.apply_dedup import deduplicate
from tests.unit.tasks.lab import Lab, messages, run_message

tenant_here: ContextVar[str | None] = ContextVar("tenant_here", default=None)


def tenant(headers: Mapping[str, Any]) -> Any:
    return headers.get("tenant") or tenant_here.get()


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.delenv("ETCDLOCK_ENDPOINTS", raising=False)
    lab = Lab()
    lab.app.conf.etcdlock_scope = tenant
    yield lab
    lab.close()


def names(lab: Lab, *expected: str) -> None:
    assert lab.bodies == list(expected)
    lab.bodies.clear()


def test_a_worker_goes_by_the_message(lab: Lab) -> None:
    task = singleton_task(app=lab.app, shared=False, name="task", lock_key="name", on_conflict="raise")(lab.body)
    with hold(task):
        for who in ("one", "two:a/b%"):
            result = task.apply_async(headers={"tenant": who})
            [message] = messages(lab.app)
            run_message(lab.app, message)
            assert result.state == "SUCCESS"
    names(lab, "one:name", "two%3Aa/b%25:name")


def test_a_direct_or_eager_call_goes_by_what_is_current(lab: Lab) -> None:
    task = singleton_task(app=lab.app, shared=False, name="task")(lab.body)
    token = tenant_here.set("one")
    task()
    task.apply()
    tenant_here.reset(token)
    task()
    task.apply(headers={"tenant": "two"})
    names(lab, "one:task", "one:task", "task", "two:task")


@pytest.mark.parametrize("lock", ["until_executing", "until_executed", "until_and_while_executing"])
def test_what_a_call_takes_its_message_finds(lab: Lab, lock: str) -> None:
    task = singleton_task(app=lab.app, shared=False, name="task", lock=lock)(lab.body)
    first = task.apply_async(headers={"tenant": "one"})
    assert task.apply_async(headers={"tenant": "one"}).id == first.id
    assert task.apply_async(headers={"tenant": "two"}).id != first.id
    token = tenant_here.set("three")
    assert task.delay().id != first.id
    tenant_here.reset(token)
    for message in messages(lab.app):
        message.headers.setdefault("tenant", "three")  # a tenant package adds it as it publishes
        run_message(lab.app, message)
    for who in ("one", "two", "three"):
        assert not lab.locks.holders(f"{who}:task")
        assert not lab.locks.holders(f"{who}:task:queued")
    assert len(lab.bodies) == 3


def test_by_an_import_path(lab: Lab) -> None:
    lab.app.conf.etcdlock_scope = f"{__name__}:tenant"
    task = singleton_task(app=lab.app, shared=False, name="task")(lab.body)
    task.apply(headers={"tenant": "one"})
    names(lab, "one:task")


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ("no_such_module:tenant", InvalidSetting, "can't be imported"),
        (f"{__name__}:__name__", InvalidSetting, "not a function"),
        (lambda headers: 5, InvalidKey, "returned 5: it must return a non-empty str"),
        (lambda headers: "", InvalidKey, "non-empty"),
        (lambda headers: headers["none"], InvalidKey, "raised KeyError"),
        (5, ImproperlyConfigured, "etcdlock_scope must be a function"),
    ],
)
def test_what_is_wrong(lab: Lab, setting: Any, error: type[Exception], message: str) -> None:
    lab.app.conf.etcdlock_scope = setting
    task = singleton_task(app=lab.app, shared=False, name="task")(lab.body)
    with pytest.raises(error, match=message):
        task()
    names(lab)


def test_a_task_that_is_locked_by_the_setting_has_its_lock_in_the_scope(lab: Lab) -> None:
    """In any process: here nobody has given the task its lock yet, as in a producer."""
    lab.app.conf.etcdlock_dedup = {"plain": {"lock_key": "name", "on_conflict": "raise"}}
    plain = lab.app.task(name="plain", shared=False)(lab.body)
    token = tenant_here.set("one")
    in_producer = lock_for(plain)
    assert in_producer.name == "one:name"
    deduplicate(lab.app, lab.locks.settings.dedup or ())
    assert lock_for(plain).name == in_producer.name
    with in_producer.hold(), pytest.raises(LockConflict):
        plain()
    tenant_here.reset(token)
