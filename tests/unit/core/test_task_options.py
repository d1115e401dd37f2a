from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from enum import Enum
from typing import Any

import pytest

from celery_etcdlock.core.policies import Policies
from celery_etcdlock.core.task_options import OPTION_NAMES, OPTIONS, TaskOptions, unknown_option
from celery_etcdlock.errors import InvalidOption


class Policy(str, Enum):
    RAISE = "raise"


def options(**attributes: Any) -> TaskOptions:
    return TaskOptions.from_attributes("app.task", attributes)


def refused(**attributes: Any) -> str:
    with pytest.raises(InvalidOption) as caught:
        options(**attributes)
    return str(caught.value)


def test_defaults() -> None:
    assert options() == TaskOptions(
        lock="while_executing",
        unique_on=None,
        lock_key=None,
        lock_ttl=None,
        on_conflict=None,
        wait_timeout=300.0,
        lock_limit=1,
        pending_ttl=None,
        unique_for=None,
        lock_at_least_for=0.0,
        on_lock_lost="raise",
    )


def test_table_and_dataclass_name_the_same_options() -> None:
    assert [field.name for field in fields(TaskOptions)] == [option.name for option in OPTIONS]
    assert OPTION_NAMES == (
        "lock", "unique_on", "lock_key", "lock_ttl", "on_conflict", "wait_timeout",
        "lock_limit", "pending_ttl", "unique_for", "lock_at_least_for", "on_lock_lost",
    )  # fmt: skip
    assert all(option.doc for option in OPTIONS)


def test_all_defaults_written_out_are_the_defaults() -> None:
    assert options(**{option.name: option.default for option in OPTIONS}) == options()


def test_other_attributes_of_a_task_are_passed_over() -> None:
    assert options(name="app.task", max_retries=3, run=None) == options()


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        options().lock = "until_executed"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("unique_on", "account_id", ("account_id",)),
        ("unique_on", ["a", "b"], ("a", "b")),
        ("unique_on", "*", "*"),
        ("lock_key", "x:{a}", "x:{a}"),
        ("lock_key", len, len),
        ("lock_ttl", 2, 2),
        ("lock_ttl", 30.0, 30),
        ("lock_ttl", 9_000_000_000, 9_000_000_000),
        ("on_conflict", "skip", "skip"),
        ("on_conflict", "raise", "raise"),
        ("on_conflict", "retry", "retry"),
        ("on_conflict", Policy.RAISE, "raise"),
        ("wait_timeout", 0.5, 0.5),
        ("wait_timeout", 60, 60.0),
    ],
)
def test_accepted(name: str, value: object, stored: object) -> None:
    got = getattr(options(**{name: value}), name)
    assert got == stored
    assert type(got) is type(stored)


LIFETIMES = "'while_executing', 'until_executing', 'until_executed', 'until_and_while_executing' or 'until_expired'"
WHOLE = "lock_ttl must be a whole number of seconds (etcd's leases are), not "
FINITE = "wait_timeout must be a finite number of seconds above 0, not "
POLICIES = "'skip', 'raise', 'retry', 'wait', 'join' or 'replace'"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lock", "while_running", f"lock must be {LIFETIMES}, not 'while_running' "
         "(did you mean 'while_executing'?)"),
        ("lock", "zzz", f"lock must be {LIFETIMES}, not 'zzz'"),
        ("lock", None, f"lock must be {LIFETIMES}, not None"),
        ("lock", True, f"lock must be {LIFETIMES}, not True"),
        ("unique_on", 1, "unique_on must be a list of argument names, '*' for all, or None, not 1"),
        ("unique_on", [], "unique_on is empty: name at least one argument, "
         "or use None to lock on the task's name alone"),
        ("lock_key", 1, "lock_key must be a template string or a callable, not 1"),
        ("lock_key", [], "lock_key as a list must hold template strings, at least one"),
        ("lock_key", ["a", 1], "lock_key as a list must hold template strings, at least one"),
        ("lock_ttl", 1, "lock_ttl must be at least 2 seconds, etcd's least, not 1"),
        ("lock_ttl", 0, "lock_ttl must be at least 2 seconds, etcd's least, not 0"),
        ("lock_ttl", -5, "lock_ttl must be at least 2 seconds, etcd's least, not -5"),
        ("lock_ttl", 10**10, "lock_ttl must be at most 9000000000 seconds, etcd's greatest, not 10000000000"),
        ("lock_ttl", 2.5, WHOLE + "2.5"),
        ("lock_ttl", math.nan, WHOLE + "nan"),
        ("lock_ttl", math.inf, WHOLE + "inf"),
        ("lock_ttl", True, WHOLE + "True"),
        ("lock_ttl", "30", WHOLE + "'30'"),
        ("on_conflict", {}, "on_conflict as a dict must have the key 'enqueue' or 'run'"),
        ("on_conflict", {"runs": "skip"}, "on_conflict as a dict has the keys 'enqueue' and 'run', not 'runs' "
         "(did you mean 'run'?)"),
        ("on_conflict", {"run": 3}, f"on_conflict must be {POLICIES}, not 3"),
        ("on_conflict", "retri", f"on_conflict must be {POLICIES}, not 'retri' (did you mean 'retry'?)"),
        ("on_conflict", 1, f"on_conflict must be {POLICIES}, not 1"),
        ("wait_timeout", 0, FINITE + "0"),
        ("wait_timeout", -1.5, FINITE + "-1.5"),
        ("wait_timeout", math.inf, FINITE + "inf"),
        ("wait_timeout", math.nan, FINITE + "nan"),
        ("wait_timeout", None, "wait_timeout must be a number of seconds, not None"),
        ("wait_timeout", True, "wait_timeout must be a number of seconds, not True"),
        ("wait_timeout", "x" * 200, "wait_timeout must be a number of seconds, not '" + "x" * 76 + "..."),
        ("lock_limit", 0, "lock_limit must be a whole number of holders, at least 1, not 0"),
        ("lock_limit", True, "lock_limit must be a whole number of holders, at least 1, not True"),
        ("lock_limit", 1.5, "lock_limit must be a whole number of holders, at least 1, not 1.5"),
        ("pending_ttl", 0, "pending_ttl must be a finite number of seconds above 0, not 0"),
        ("unique_for", -1, "unique_for must be a finite number of seconds above 0, not -1"),
        ("lock_at_least_for", -1, "lock_at_least_for must be a finite number of seconds above 0, not -1"),
        ("on_lock_lost", "ignore", "on_lock_lost must be 'raise' or 'flag', not 'ignore'"),
        ("on_lock_lost", None, "on_lock_lost must be 'raise' or 'flag', not None"),
    ],
)  # fmt: skip
def test_refused(name: str, value: object, message: str) -> None:
    assert refused(**{name: value}) == f"task 'app.task': {message}"


def test_ints_that_python_refuses_to_print() -> None:
    huge = 10**9999
    assert refused(lock_ttl=huge).endswith("at most 9000000000 seconds, etcd's greatest, not a very large int")
    assert refused(wait_timeout=huge).endswith(FINITE + "a very large int")


def test_unique_on_and_lock_key_exclude_each_other() -> None:
    assert refused(unique_on="*", lock_key="a") == (
        "task 'app.task': unique_on and lock_key are both given, and each makes the whole key: leave one out"
    )


def test_what_is_said_of_an_unknown_option() -> None:
    celery = {"bind", "max_retries", "name", "autoretry_for"}
    listed = f"celery-etcdlock's options are {', '.join(OPTION_NAMES)}"
    for name, hint in [
        ("uniqe_on", " (did you mean 'unique_on'?)"),
        ("max_retires", " (did you mean 'max_retries'?)"),
        ("zzzzzz", ""),
    ]:
        assert unknown_option(name, celery) == f"unknown option {name!r}{hint}; {listed}"
    assert unknown_option("max_retires") == f"unknown option 'max_retires'; {listed}"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"lock": "until_expired"}, "needs unique_for"),
        ({"unique_for": 60}, "unique_for is for lock='until_expired', not for 'while_executing'"),
        ({"pending_ttl": 60}, "pending_ttl is for locks that a queued message holds"),
        ({"lock": "until_executing", "lock_at_least_for": 5}, "lock_at_least_for needs a lock that is held while"),
        ({"lock": "until_executing", "on_conflict": "wait"}, "make no sense with lock='until_executing'"),
        ({"lock": "until_expired", "unique_for": 9, "on_conflict": "replace"}, "'replace' makes no sense with"),
        ({"on_conflict": {"enqueue": "skip"}}, "lock='while_executing' takes nothing at enqueue"),
        ({"lock": "until_executing", "on_conflict": {"run": "skip"}}, "holds nothing while it runs"),
        ({"lock": "until_executed", "on_conflict": {"enqueue": "wait"}}, "['enqueue'] must be one of 'skip', "),
        ({"lock_limit": 2, "on_conflict": "replace"}, "lock_limit=1"),
        ({"lock_key": ["a", "b"], "on_conflict": "replace"}, "is for one lock"),
        ({"lock_key": ["a", "b"], "on_conflict": "wait"}, "is for one lock"),
    ],
)
def test_options_that_contradict_each_other(attributes: dict[str, Any], message: str) -> None:
    assert message in refused(**attributes)


@pytest.mark.parametrize("lock", LIFETIMES.replace(" or", ",").replace("'", "").split(", "))
def test_lifetimes(lock: str) -> None:
    unique_for = 60 if lock == "until_expired" else None
    assert options(lock=lock, unique_for=unique_for).lifetime.name == lock


def test_policies_for_each_place() -> None:
    assert options(on_conflict="wait").policies == Policies("wait", "wait")
    pair = options(lock="until_and_while_executing", on_conflict={"enqueue": "replace", "run": "wait"})
    assert pair.policies == Policies("replace", "wait")
    assert options(lock="until_executed", on_conflict={"enqueue": "raise"}).policies == Policies("raise", None)
    assert options(on_conflict=len).policies == Policies(len, len)
