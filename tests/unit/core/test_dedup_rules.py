"""The setting ``etcdlock_dedup``: which task gets what."""

from __future__ import annotations

from typing import Any

import pytest

from celery_etcdlock.core.dedup_rules import TASK_ID, check_dedup, rule_for, rules_from_words


def pattern_for(setting: Any, task: str) -> str | None:
    rule = rule_for(check_dedup(setting), task)
    return None if rule is None else rule.pattern


def test_the_first_match_counts() -> None:
    setting = {"reports.daily": {}, "reports.*": {"unique_on": "*"}, "*": TASK_ID}
    assert pattern_for(setting, "reports.daily") == "reports.daily"
    assert pattern_for(setting, "reports.weekly") == "reports.*"
    assert pattern_for(setting, "other") == "*"


def test_tasks_that_are_left_alone() -> None:
    locks = {rule.pattern: rule.locks for rule in check_dedup({"flush": False, "reports.*": {}, "*": TASK_ID})}
    assert locks == {"flush": False, "reports.*": True, "*": True}


def test_built_in_tasks_are_matched_by_their_whole_name_only() -> None:
    assert pattern_for({"*": {}}, "celery.chord_unlock") is None
    assert pattern_for({"celery.*": {}}, "celery.chord_unlock") is None
    assert pattern_for({"celery.backend_cleanup": {}}, "celery.backend_cleanup") == "celery.backend_cleanup"


def test_task_id_alone_is_for_all() -> None:
    (rule,) = check_dedup(TASK_ID)
    assert (rule.pattern, rule.options) == ("*", None)


@pytest.mark.parametrize("value", ["taskid", 5, ["a"], {"a": "b"}, {5: {}}, {"": {}}, {"a": None}, True])
def test_what_has_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|has "):
        check_dedup(value)


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ([TASK_ID], {"*": TASK_ID}),
        (["a.*"], {"a.*": {"unique_on": "*"}}),
        ([TASK_ID, "a.*"], {"a.*": {"unique_on": "*"}, "*": TASK_ID}),
    ],
)
def test_the_command_line(words: list[str], setting: Any) -> None:
    assert rules_from_words(words) == setting
    assert list(rules_from_words(words)) == list(setting)
