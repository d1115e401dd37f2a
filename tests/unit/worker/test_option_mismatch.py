"""What is said when workers have other lock options for one task."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.worker import option_mismatch
from celery_etcdlock.worker.option_mismatch import differences

OWN = {"p.sync": {"unique_on": "('account_id',)", "lock_limit": "1"}, "p.other": {"lock_limit": "1"}}


def test_the_same_options_and_other_tasks_are_no_difference() -> None:
    assert differences(OWN, {"w2": json.dumps(OWN | {"p.third": {}})}) == []


def test_each_difference_names_task_option_and_worker() -> None:
    theirs = {"p.sync": {"unique_on": "None", "lock_limit": "1"}}
    (line,) = differences(OWN, {"w2@host": json.dumps(theirs)})
    assert "task 'p.sync' has unique_on = ('account_id',) here and None at worker w2@host" in line


def test_what_is_no_note_of_ours_is_passed_over() -> None:
    assert differences(OWN, {"w2": "{", "w3": "[]", "w4": '{"p.sync": 5}'}) != []
    assert differences(OWN, {"w2": "{", "w3": "[]"}) == []


@pytest.mark.parametrize("is_away", [False, True])
def test_no_connection_stays_open_for_it(monkeypatch: pytest.MonkeyPatch, is_away: bool) -> None:
    """Neither while the worker runs nor after it, whether the store answers or not."""
    calls: list[str] = []

    class Inspector:
        def __getattr__(self, name: str) -> Any:
            def call(*arguments: object) -> dict[str, str]:
                calls.append(name)
                if is_away and name != "close":
                    raise LockUnavailable("away")
                return {}

            return call

    app = Celery("compared", broker="memory://", set_as_current=False)
    app.conf.etcdlock_endpoints = "127.0.0.1:1"
    monkeypatch.setattr(option_mismatch, "open_inspector", lambda settings: Inspector())
    step = option_mismatch.CompareOptions(SimpleNamespace(app=app, hostname="w@host"))
    step._compare({})
    assert calls == (["notes", "close"] if is_away else ["notes", "write_note", "close"])
    calls.clear()
    step.stop(None)
    assert calls == ([] if is_away else ["delete_note", "close"])
