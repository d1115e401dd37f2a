"""Options that change how long, how often and how many locks a task takes, on one real worker."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from celery_etcdlock import EtcdLocks, LockConflict
from tests.integration.workers.conftest import Project
from tests.waiting import wait_for


def keys(project: Project, name: str) -> tuple[Any, ...]:
    return EtcdLocks.from_app(project.app).holders(name)


class TestLeastHold:
    def test_the_lock_stays_taken_after_the_end(self, working: Project) -> None:
        task = working.module.held_on  # 2 s, on_conflict="raise"
        started = time.monotonic()
        first = task.delay("k")
        assert first.get(timeout=30) == first.id
        with pytest.raises(LockConflict) as conflict:
            task.delay("k").get(timeout=30)
        assert conflict.value.task_id == first.id
        assert task.delay("other").get(timeout=30)
        wait_for(lambda: not keys(working, f"{task.name}:k"), "the least hold is over", 20)
        assert time.monotonic() - started >= 1.9  # the record's times are rounded
        second = task.delay("k")
        assert second.get(timeout=30) == second.id

    def test_a_run_that_lasts_longer_lets_go_at_its_end(self, working: Project) -> None:
        task = working.module.held_on
        first = task.delay("long", 2.2)
        first.get(timeout=30)
        assert keys(working, f"{task.name}:long") == ()

    def test_a_call_while_it_stands_is_the_first_s_result(self, working: Project) -> None:
        task = working.module.at_least_queued  # 600 s
        first = task.delay("k")
        assert first.get(timeout=30) == first.id
        assert task.delay("k").id == first.id
        with pytest.raises(TaskRevokedError, match=first.id):
            working.app.send_task(task.name, ("k",)).get(timeout=30)


class TestSeveralLocks:
    def test_of_a_message_go_over_to_its_run(self, working: Project) -> None:
        task = working.module.both_queued
        first = task.delay("a", 60.0, "b")
        assert len(keys(working, "both:a:left")) == len(keys(working, "both:b:right")) == 1
        working.bodies.wait_entered()
        for name in ("both:a:left", "both:b:right"):
            (key,) = keys(working, name)
            assert key.record is not None
            assert key.record.delivery.task_id == first.id
            assert key.record.until is None, "held by the run, which renews it"
        working.bodies.end_all()
        assert first.get(timeout=30) == "b"
        assert keys(working, "both:a:left") == keys(working, "both:b:right") == ()

    def test_all_are_taken_or_none(self, working: Project) -> None:
        task = working.module.both_queued
        first = task.delay("a", 60.0, "b")
        working.bodies.wait_entered()
        assert task.delay("c", 0.0, "b").id == first.id
        assert task.delay("a", 0.0, "d").id == first.id
        assert keys(working, "both:c:left") == keys(working, "both:d:right") == ()
        assert task.delay("c", 0.0, "d").get(timeout=30) == "d"
        working.bodies.end_all()
        first.get(timeout=30)

    def test_a_failure_and_a_retry_free_both(self, working: Project) -> None:
        task = working.module.both_queued
        with pytest.raises(ValueError, match="on purpose"):
            task.delay("a", 0.0, "b", fail=True).get(timeout=30)
        assert keys(working, "both:a:left") == keys(working, "both:b:right") == ()
        assert task.delay("a", 0.0, "b", retry_once=True).get(timeout=30) == "b"
        assert keys(working, "both:a:left") == keys(working, "both:b:right") == ()

    def test_the_order_makes_no_deadlock(self, working: Project) -> None:
        task = working.module.transfer
        calls = [task.delay(*pair, 0.1) for pair in (("x", "y"), ("y", "x"), ("y", "z"), ("z", "x"))]
        for call in calls:
            call.get(timeout=60)
        assert working.bodies.entered() == len(calls)
        inside: set[str] = set()
        for event in sorted(working.bodies.events(), key=lambda event: event["at"]):
            names = set(event["name"].split(", "))
            if event["event"] == "enter":
                assert not names & inside, event
                inside |= names
            else:
                inside -= names


def test_lock_limit_lets_so_many_run_and_no_more(working: Project) -> None:
    task = working.module.two_at_once
    calls = [task.delay("k", 60.0) for _ in range(2)]
    working.bodies.wait_entered(2)
    calls += [task.delay("k", 0.2) for _ in range(2)]
    wait_for(lambda: {call.state for call in calls[2:]} == {"RETRY"}, "the others wait")
    assert working.bodies.entered() == 2
    working.bodies.end_all()
    for call in calls:
        assert call.get(timeout=60) == call.id
    inside = most = 0
    for event in sorted(working.bodies.events(), key=lambda event: event["at"]):
        inside += 1 if event["event"] == "enter" else -1
        most = max(most, inside)
    assert most == 2
