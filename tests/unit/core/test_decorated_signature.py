"""Keys of calls whose function is wrapped in a decorator: by the names of the function inside, or by none at all."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.core.lock_names import LockNaming
from celery_etcdlock.errors import InvalidKey, InvalidOption
from tests.unit.core.key_vectors import naming


def hand_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def add_by_name(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, session="S", **kwargs)

    return wrapper


def add_in_front(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function("S", *args, **kwargs)

    return wrapper


def take_away_by_name(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, trace: Any = None, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def take_away_in_front(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(trace: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def take_away_unnamed(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("trace", None)
        return function(*args, **kwargs)

    return wrapper


def spec(function: Callable[..., Any], **options: Any) -> LockNaming:
    checked = inspect.signature(function, follow_wrapped=False)
    return naming("task", inspect.signature(function), checked=checked, **options)


def account_session(account: Any, session: Any) -> Any:
    return account


def session_account(session: Any, account: Any) -> Any:
    return account


def session_account_full(session: Any, account: Any, full: bool = False) -> Any:
    return account


def account_full(account: Any, full: bool = False) -> Any:
    return account


CASES: list[tuple[Any, Any, list[tuple[tuple[Any, ...], dict[str, Any]]]]] = [
    (hand_on, account_full, [((7,), {}), ((), {"account": 7}), ((7, True), {}), ((7,), {"full": True})]),
    (add_by_name, account_session, [((7,), {}), ((), {"account": 7})]),
    (add_by_name, session_account, [((), {"account": 7})]),
    (add_in_front, session_account, [((7,), {}), ((), {"account": 7})]),
    (add_in_front, session_account_full, [((7,), {}), ((7,), {"full": True}), ((), {"account": 7, "full": True})]),
    (take_away_by_name, account_full, [((7,), {}), ((7,), {"trace": "t"}), ((), {"trace": "t", "account": 7})]),
    (take_away_in_front, account_full, [(("t", 7), {}), (("t",), {"account": 7}), (("u", 7, True), {})]),
    (take_away_unnamed, account_full, [((7,), {}), ((7,), {"trace": "t"})]),
]


@pytest.mark.parametrize(("decorator", "function", "calls"), CASES)
@pytest.mark.parametrize("options", [{"unique_on": ["account"]}, {"lock_key": "a:{account}"}])
def test_the_callers_spelling_doesnt_matter(decorator: Any, function: Any, calls: Any, options: Any) -> None:
    key = spec(decorator(function), **options)
    wanted = spec(account_full, **options).names_for((7,), {})[0]
    for args, kwargs in calls:
        assert key.names_for(args, kwargs)[0] == wanted
        assert decorator(function)(*args, **kwargs) == 7


@pytest.mark.parametrize(("decorator", "function", "calls"), CASES)
def test_all_arguments(decorator: Any, function: Any, calls: Any) -> None:
    """What is taken away is an argument of the call too."""
    key = spec(decorator(function), unique_on="*")
    for args, kwargs in calls:
        other = tuple(8 if value == 7 else value for value in args)
        others = {name: 8 if value == 7 else value for name, value in kwargs.items()}
        assert key.names_for(args, kwargs)[0] != key.names_for(other, others)[0]


def test_where_there_is_no_telling_there_is_no_guess() -> None:
    def function(session: Any, account: Any, region: Any) -> None: ...

    key = spec(add_in_front(function), unique_on=["account"])
    with pytest.raises(InvalidKey, match="this call doesn't tell which are account: pass them by keyword"):
        key.names_for((7, "eu"), {})[0]
    assert key.names_for((), {"account": 7, "region": "eu"})[0]
    with pytest.raises(InvalidKey, match="doesn't fit the arguments of the function inside"):
        key.names_for((1, 2, 3, 4), {})[0]


def test_a_callable_is_called_with_what_the_caller_gives() -> None:
    key = spec(add_in_front(session_account), lock_key=lambda account: f"a:{account}")
    assert key.names_for((7,), {})[0] == key.names_for((), {"account": 7})[0] == "a:7"
    key = spec(hand_on(account_full), lock_key=lambda account, full: f"a:{account}:{full}")
    assert key.names_for((7,), {})[0] == "a:7:False"


def test_a_name_that_neither_has() -> None:
    with pytest.raises(InvalidOption, match="it has account, full, trace"):
        spec(take_away_by_name(account_full), unique_on=["zz"])
    with pytest.raises(InvalidOption, match="it has account, full"):
        spec(hand_on(account_full), lock_key="{zz}")
    assert spec(take_away_by_name(account_full), unique_on=["trace"]).names_for((7,), {"trace": 1})[0]


def test_a_wrapper_with_a_signature_of_its_own_is_what_is_called() -> None:
    @functools.wraps(session_account)
    def wrapper(account: Any) -> Any:
        return session_account("S", account)

    checked = inspect.signature(wrapper, follow_wrapped=False)
    assert list(naming("task", checked, checked=checked, unique_on="*").signature.parameters) == ["account"]


@given(
    added=st.integers(0, 2),
    behind=st.integers(0, 2),
    optional=st.integers(0, 2),
    given_by_name=st.booleans(),
    data=st.data(),
)
def test_never_the_value_of_another_argument(
    added: int, behind: int, optional: int, given_by_name: bool, data: st.DataObject
) -> None:
    """Of a decorator that adds arguments in front, and a call with all that is required."""
    names = [f"added{n}" for n in range(added)] + ["key"] + [f"behind{n}" for n in range(behind)]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    parameters += [
        inspect.Parameter(f"optional{n}", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
        for n in range(optional)
    ]
    inner = inspect.Signature(parameters)
    outer = inspect.signature(lambda *args, **kwargs: None)
    key = naming("task", inner, checked=outer, lock_key="{key}")
    values = {name: f"value of {name}" for name in names[added:]}
    args = () if given_by_name else tuple(values.values())
    try:
        assert key.names_for(args, values if given_by_name else {})[0] == "value of key"
    except InvalidKey:
        assert not given_by_name  # it says so, and doesn't guess
