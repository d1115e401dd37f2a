"""What is said when workers have other lock options for one task."""

from __future__ import annotations

import json

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
