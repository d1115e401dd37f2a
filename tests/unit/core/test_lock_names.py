from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.core.lock_names import LockNaming
from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.errors import InvalidKey, InvalidOption
from tests.unit.core.key_vectors import HASH_KEY, VECTORS, IntColor, StrColor, naming, spec_of, text_of

SCRIPT = Path(__file__).with_name("key_vectors.py")
OTHER_PYTHONS = sorted(
    interpreter
    for minor in (10, 12, 13)
    for interpreter in (Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python")
)


def sync(account_id: object, full: bool = False) -> None: ...


def spec_for(function: Callable[..., object] = sync, **options: Any) -> LockNaming:
    return naming("app.task", inspect.signature(function), **options)


def refused_option(function: Callable[..., object] = sync, **options: Any) -> str:
    with pytest.raises(InvalidOption) as caught:
        spec_for(function, **options)
    return str(caught.value)


def refused_key(spec: LockNaming, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InvalidKey) as caught:
        spec.names_for(args, kwargs)[0]
    return str(caught.value)


# Pinned names


@pytest.mark.parametrize(("function", "options", "args", "kwargs", "text", "name"), VECTORS)
def test_vectors(function: Callable[..., object], options: Any, args: Any, kwargs: Any, text: str, name: str) -> None:
    spec = spec_of(function, options)
    assert text_of(spec, args, kwargs) == text
    assert spec.names_for(args, kwargs)[0] == name


def run_vectors(interpreter: str | Path, seed: str) -> None:
    done = subprocess.run(
        [str(interpreter), "-S", str(SCRIPT)],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{len(VECTORS)}\n"), done.stdout + done.stderr


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_vectors_under_other_hash_seeds(seed: str) -> None:
    run_vectors(sys.executable, seed)


@pytest.mark.skipif(not OTHER_PYTHONS, reason="no other Python 3.10, 3.12 or 3.13 of pyenv here")
@pytest.mark.parametrize("interpreter", OTHER_PYTHONS, ids=lambda path: path.parents[1].name)
def test_vectors_on_other_pythons(interpreter: Path) -> None:
    run_vectors(interpreter, "random")


# Binding


@pytest.mark.parametrize("unique_on", ["*", ["account_id", "full"], ("full", "account_id"), {"full", "account_id"}])
def test_one_call_in_all_its_forms_has_one_name(unique_on: object) -> None:
    spec = spec_for(unique_on=unique_on)
    calls: list[tuple[Any, dict[str, Any]]] = [
        ((1,), {}), ((), {"account_id": 1}), ((1, False), {}), ((1,), {"full": False}),
        ((), {"full": False, "account_id": 1}), ([1], {}),
    ]  # fmt: skip
    assert len({spec.names_for(args, kwargs)[0] for args, kwargs in calls}) == 1
    assert spec.names_for((1, True), {})[0] != spec.names_for((1,), {})[0]
    assert spec.names_for(("1",), {})[0] != spec.names_for((1,), {})[0]


def test_unique_on_none_is_the_task_s_name_and_looks_at_nothing() -> None:
    assert spec_for().names_for((object(),), {"nonsense": object()})[0] == "app.task"
    assert text_of(spec_for(), (1,), {}) == "{}"


def test_a_plain_string_is_one_name() -> None:
    assert (
        spec_for(unique_on="account_id").names_for((1, True), {})[0]
        == spec_for(unique_on=["account_id"]).names_for((1,), {})[0]
    )


def test_a_bound_method_s_self_is_not_in_the_key() -> None:
    class Job:
        def run(self, x: int, full: bool = False) -> None: ...

    spec = spec_for(Job().run, unique_on="*")
    assert text_of(spec, (1,), {}) == '{"full":false,"x":1}'


def positional_only(a: object, /, b: object = 2, *, c: object = 3) -> None: ...
def variadic(first: object, *rest: object, flag: bool = False, **extra: object) -> None: ...
def nothing() -> None: ...


@pytest.mark.parametrize(
    ("function", "unique_on", "args", "kwargs", "text"),
    [
        (positional_only, "*", (1,), {}, '{"a":1,"b":2,"c":3}'),
        (positional_only, "*", (1, 4), {"c": 5}, '{"a":1,"b":4,"c":5}'),
        (nothing, "*", (), {}, "{}"),
        (variadic, "*", (1,), {}, '{"extra":{},"first":1,"flag":false,"rest":[]}'),
        (variadic, "*", (1, 2), {"z": 1, "y": 2}, '{"extra":{"y":2,"z":1},"first":1,"flag":false,"rest":[2]}'),
        (variadic, ["rest"], (1, 2, 3), {}, '{"rest":[2,3]}'),
        (variadic, ["extra"], (1,), {"y": 2}, '{"extra":{"y":2}}'),
        (variadic, ["tenant"], (1,), {}, "{}"),
        (variadic, ["tenant"], (1,), {"tenant": None}, '{"tenant":null}'),
        (variadic, ["tenant", "first", "first"], (1,), {"tenant": "a", "y": 2}, '{"first":1,"tenant":"a"}'),
        (variadic, ["extra", "tenant"], (1,), {"tenant": "a"}, '{"extra":{"tenant":"a"},"tenant":"a"}'),
    ],
)
def test_text_of_calls(function: Any, unique_on: object, args: Any, kwargs: Any, text: str) -> None:
    assert text_of(spec_for(function, unique_on=unique_on), args, kwargs) == text


@given(st.lists(st.integers(), max_size=3), st.dictionaries(st.sampled_from("abcde"), st.integers(), max_size=4))
@pytest.mark.parametrize(
    "function",
    [positional_only, lambda a, b=2, *, c, d=4: None, lambda a, *e, b=1: None, lambda a, b=1, **k: None],
)
def test_binding_is_python_s(function: Any, args: list[int], kwargs: dict[str, int]) -> None:
    spec = spec_for(function, unique_on="*")
    try:
        expected = inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        reason = str(error)
    else:
        reason = ""
    if reason:
        assert refused_key(spec, *args, **kwargs).endswith(reason)
        return
    expected.apply_defaults()
    # Called by its full arguments, the text is that of each argument by itself.
    single = {name: text_of(spec_for(function, unique_on=name), args, kwargs)[1:-1] for name in expected.arguments}
    assert text_of(spec, args, kwargs) == "{" + ",".join(single[name] for name in sorted(single)) + "}"
    for name, value in expected.arguments.items():
        if isinstance(value, int):
            assert single[name] == f'"{name}":{value}'


@pytest.mark.parametrize(
    ("args", "kwargs", "reason"),
    [
        ((), {}, "missing a required argument: 'account_id'"),
        ((), {"full": True}, "missing a required argument: 'account_id'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"fulll": True}, "got an unexpected keyword argument 'fulll'"),
        ((1,), {"account_id": 2}, "multiple values for argument 'account_id'"),
    ],
)
@pytest.mark.parametrize("options", [{"unique_on": "*"}, {"lock_key": "{full}"}, {"lock_key": sync}])
def test_message_for_a_call_that_does_not_fit(options: Any, args: Any, kwargs: Any, reason: str) -> None:
    assert refused_key(spec_for(**options), *args, **kwargs) == (
        f"task 'app.task': the call doesn't fit the task's arguments (account_id, full): {reason}"
    )


def test_message_for_a_value_that_has_no_text() -> None:
    message = refused_key(spec_for(unique_on=["account_id"]), {"items": [object()]})
    assert message.startswith(
        "task 'app.task': argument account_id.items[0] can't be part of a lock's key: it is of type 'object'"
    )
    assert "lock_key=callable" in message


# unique_on at definition


@pytest.mark.parametrize(
    ("function", "unique_on", "message"),
    [
        (sync, ["acount_id"], "unique_on names 'acount_id', which is no argument of the task "
         "(did you mean 'account_id'?): it has account_id, full"),
        (sync, "zzz", "unique_on names 'zzz', which is no argument of the task: it has account_id, full"),
        (nothing, ["x"], "unique_on names 'x', which is no argument of the task: it has no arguments at all"),
        (variadic, ["not a name"], "unique_on names 'not a name', which is no argument of the task: "
         "it has first, rest, flag, extra"),
        (sync, [], "unique_on is empty: name at least one argument, or use None to lock on the task's name alone"),
        (sync, 3, "unique_on must be a list of argument names, '*' for all, or None, not 3"),
        (sync, {"a": 1}, "unique_on must be a list of argument names, '*' for all, or None, not a dict"),
        (sync, ["account_id", 1], "unique_on must hold argument names as str, not 1"),
        (sync, ["*", "full"], "unique_on has '*' among other names: write unique_on='*' for all arguments"),
    ],
)  # fmt: skip
def test_wrong_unique_on(function: Any, unique_on: object, message: str) -> None:
    assert refused_option(function, unique_on=unique_on) == f"task 'app.task': {message}"


def test_a_default_that_has_no_text_is_found_at_definition() -> None:
    def cached(x: int, cache: object = object()) -> None: ...

    assert refused_option(cached, unique_on="*").startswith(
        "task 'app.task': the default of an argument in unique_on can't be used: argument cache can't be part"
    )
    spec_for(cached, unique_on=["x"])


def test_unique_on_and_lock_key_exclude_each_other() -> None:
    assert refused_option(unique_on="*", lock_key="a") == (
        "task 'app.task': unique_on and lock_key are both given, and each makes the whole key: leave one out"
    )


# The hash key


def test_hash_key_changes_names_but_not_texts_or_the_plain_name() -> None:
    plain = spec_for(unique_on="*")
    keyed = plain.with_hash_key(HASH_KEY)
    assert text_of(keyed, (1,), {}) == text_of(plain, (1,), {})
    assert (
        len(
            {
                plain.names_for((1,), {})[0],
                keyed.names_for((1,), {})[0],
                plain.with_hash_key(b"x" * 16).names_for((1,), {})[0],
            }
        )
        == 3
    )
    assert keyed.names_for((1,), {})[0] == spec_for(unique_on="*", hash_key=HASH_KEY).names_for((1,), {})[0]
    assert keyed.with_hash_key(None).names_for((1,), {})[0] == plain.names_for((1,), {})[0]
    assert spec_for(hash_key=HASH_KEY).names_for((1,), {})[0] == "app.task"


def test_long_hash_keys_count_to_their_last_byte() -> None:
    names = {
        spec_for(unique_on="*", hash_key=key).names_for((1,), {})[0] for key in (b"k" * 64, b"k" * 65, b"k" * 65 + b"l")
    }
    assert len(names) == 3


# Templates


class Loud(str, Enum):
    RED = "red"

    def __str__(self) -> str:
        return "LOUD"

    def __format__(self, spec: str) -> str:
        return "LOUD"


MOMENT = datetime(2024, 2, 29, 12, 30, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("template", "value", "name"),
    [
        ("invoice:{account_id}", 7, "invoice:7"),
        ("fixed", object(), "fixed"),
        ("{{{account_id}}}", "x", "{x}"),
        ("{account_id}:{full}", None, "None:False"),
        ("{account_id}", -0.0, "0.0"),
        ("{account_id}", Decimal("1.00"), "1"),
        ("{account_id:.2f}", Decimal("1"), "1.00"),
        ("{account_id}", UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("{account_id}", MOMENT, "2024-02-29T12:30:00+01:00"),
        ("{account_id:%Y-%m}", MOMENT, "2024-02"),
        ("{account_id}", date(2024, 2, 29), "2024-02-29"),
        ("{account_id:%d.%m.}", date(2024, 2, 29), "29.02."),
        ("{account_id}", IntColor.RED, "1"),
        ("{account_id:03d}", IntColor.RED, "001"),
        ("{account_id}", StrColor.RED, "red"),
        ("{account_id:>5}", Loud.RED, "  red"),
        ("{account_id.id}", SimpleNamespace(id=3), "3"),
        ("{account_id[id]}", {"id": 3}, "3"),
        ("{account_id[_id]}", {"_id": 3}, "3"),
        ("{account_id[7]}", {7: "a"}, "a"),
        ("{account_id[7]}", {"7": "a"}, "a"),
        ("{account_id[1].id[0]}", [0, SimpleNamespace(id=("z",))], "z"),
        ("{account_id}", "é" * 10_000, "é" * 10_000),
    ],
)
def test_templates(template: str, value: object, name: str) -> None:
    spec = spec_for(lock_key=template)
    assert spec.names_for((value,), {})[0] == name
    assert spec.names_for((), {"account_id": value})[0] == name
    assert len(escape_name(name)) <= 200


def test_templates_over_variadic_arguments() -> None:
    spec = spec_for(variadic, lock_key="{rest[0]}:{tenant}:{extra[tenant]}:{flag}")
    assert spec.names_for((1, "r"), {"tenant": "t"})[0] == "r:t:t:False"
    assert refused_key(spec, 1, "r") == (
        "task 'app.task': lock_key's field {tenant} names an argument that this call doesn't have"
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{acount_id}", "lock_key '{acount_id}' names 'acount_id', which is no argument of the task "
         "(did you mean 'account_id'?): it has account_id, full"),
        ("{self}", "lock_key '{self}' names 'self', which is no argument of the task: it has account_id, full"),
        ("{}", "lock_key '{}' has the positional field {}: name an argument, account_id, full"),
        ("x{0}", "lock_key 'x{0}' has the positional field {0}: name an argument, account_id, full"),
        ("{full.__class__}", "lock_key '{full.__class__}' reads the private attribute '__class__': use a public one"),
        ("{full._x}", "lock_key '{full._x}' reads the private attribute '_x': use a public one"),
        ("{full.x._y[0]}", "lock_key '{full.x._y[0]}' reads the private attribute '_y': use a public one"),
        ("{full!r}", "lock_key '{full!r}' converts {full!r}: only plain values are rendered, leave !r out"),
        ("{full:{account_id}}", "lock_key '{full:{account_id}}' has a field within the format of {full}: "
         "write the format out"),
        ("{full[}", "lock_key '{full[}' isn't a format template: expected '}' before end of string; "
         "write {{ and }} for braces"),
        ("{full", "lock_key '{full' isn't a format template: expected '}' before end of string; "
         "write {{ and }} for braces"),
        ("full}", "lock_key 'full}' isn't a format template: Single '}' encountered in format string; "
         "write {{ and }} for braces"),
        ("{full..x}", "lock_key '{full..x}' has the field {full..x}, which can't be read: use {name}, "
         "{name.attribute} or {name[key]}"),
        ("", "lock_key is empty; leave it out to lock on the task's name"),
    ],
)  # fmt: skip
def test_wrong_templates(template: str, message: str) -> None:
    assert refused_option(lock_key=template) == f"task 'app.task': {message}"


def test_template_in_a_task_without_arguments() -> None:
    assert refused_option(nothing, lock_key="{x}").endswith("it has no arguments at all")


@pytest.mark.parametrize(
    ("template", "value", "message"),
    [
        ("{account_id}", [1], "lock_key's field {account_id} is of type 'list', which has no safe text: "
         "use a field of it that is a str or a number, or lock_key=callable"),
        ("{account_id}", object(), "lock_key's field {account_id} is of type 'object', which has no safe text: "
         "use a field of it that is a str or a number, or lock_key=callable"),
        ("{account_id}", b"a", "lock_key's field {account_id} is of type 'bytes', which has no safe text: "
         "use a field of it that is a str or a number, or lock_key=callable"),
        ("{account_id}", float("nan"), "lock_key's field {account_id} is a NaN, which doesn't even equal itself"),
        ("{account_id}", Decimal("sNaN"), "lock_key's field {account_id} is a NaN, which doesn't even equal itself"),
        ("{account_id:d}", "s3cret", "lock_key's field {account_id} doesn't take the format 'd': ValueError"),
        ("{account_id.id}", {"id": "s3cret"}, "lock_key's field {account_id.id} can't be read from the argument: "
         "AttributeError. JSON arguments arrive as dicts, read them with {name[key]}; or use lock_key=callable"),
        ("{account_id[id]}", {"s3cret": 1}, "lock_key's field {account_id[id]} can't be read from the argument: "
         "KeyError. JSON arguments arrive as dicts, read them with {name[key]}; or use lock_key=callable"),
        ("{account_id[3]}", [1], "lock_key's field {account_id[3]} can't be read from the argument: "
         "IndexError. JSON arguments arrive as dicts, read them with {name[key]}; or use lock_key=callable"),
        ("{account_id}", "", "its lock_key template came to an empty str, which can't name a lock"),
    ],
)  # fmt: skip
def test_calls_that_a_template_cannot_name(template: str, value: object, message: str) -> None:
    assert refused_key(spec_for(lock_key=template), value) == f"task 'app.task': {message}"


# Callables


def test_a_callable_is_called_with_the_bound_arguments() -> None:
    seen: list[Any] = []

    def key(*args: object, **kwargs: object) -> str:
        seen.append((args, kwargs))
        return "n" * 10_000

    assert spec_for(lock_key=key).names_for((), {"account_id": 1})[0] == "n" * 10_000
    spec_for(variadic, lock_key=key).names_for((1, 2), {"tenant": 3})[0]
    assert seen == [((1, False), {}), ((1, 2), {"flag": False, "tenant": 3})]


def test_a_callable_s_str_enum_is_its_value() -> None:
    name = spec_for(lock_key=lambda account_id, full: Loud.RED).names_for((1,), {})[0]
    assert (name, type(name)) == ("red", str)


def key_that_raises(account_id: object, full: bool) -> str:
    raise LookupError("s3cret")


async def async_key(account_id: object, full: bool) -> str:
    return "x"


class KeyObject:
    def __call__(self, account_id: object, full: bool) -> object:
        return account_id


def test_message_for_a_callable_that_raises() -> None:
    with pytest.raises(InvalidKey) as caught:
        spec_for(lock_key=key_that_raises).names_for((1,), {})[0]
    assert str(caught.value) == (
        f"task 'app.task': its lock_key {__name__}.key_that_raises raised LookupError; "
        "it is called with the task's arguments and must return a str"
    )
    assert isinstance(caught.value.__cause__, LookupError)


def test_message_for_a_callable_that_takes_other_arguments() -> None:
    assert "raised TypeError; it is called with the task's arguments" in refused_key(spec_for(lock_key=nothing), 1)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "must return a str or a list of them, not a NoneType"),
        (3, "must return a str or a list of them, not an int"),
        (b"a", "must return a str or a list of them, not a bytes"),
        ("", "came to an empty str, which can't name a lock"),
        ([], "returned no name at all"),
        (["a", 3], "must return a str or a list of them, not an int"),
    ],
)  # fmt: skip
def test_callables_that_return_something_else(returned: object, message: str) -> None:
    assert refused_key(spec_for(lock_key=KeyObject()), returned) == (
        f"task 'app.task': its lock_key {__name__}.KeyObject {message}"
    )


@pytest.mark.parametrize(
    ("lock_key", "message"),
    [
        (3, "lock_key must be a template string or a callable, not 3"),
        (async_key, f"lock_key {__name__}.async_key is an async function: use a plain one that returns a str"),
    ],
)  # fmt: skip
def test_wrong_lock_keys(lock_key: object, message: str) -> None:
    assert refused_option(lock_key=lock_key) == f"task 'app.task': {message}"


def test_several_locks() -> None:
    spec = spec_for(lock_key=("account:{account_id}", "all", "account:{account_id}"))
    assert spec.names_for((7,), {}) == ("account:7", "all")
    assert spec_for(lock_key=lambda account_id, full: ["b", "a", "b"]).names_for((7,), {}) == ("b", "a")
