from __future__ import annotations

import math
import re
import sys
from collections import OrderedDict
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal, localcontext
from enum import Enum, Flag
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from celery_etcdlock.core.canonical import MAX_DEPTH, canonical_text
from celery_etcdlock.errors import InvalidKey
from tests.unit.core.key_vectors import IntColor, Point, StrColor

NAMES = {
    **{kind.__name__: kind for kind in (date, datetime, time, timedelta, timezone, Decimal, UUID, Point)},
    "IntColor": IntColor,
    "StrColor": StrColor,
}
DOCUMENTED = re.findall(
    r"^\| ([^|]+) \| `([^|]+)` \| `([^|]+)` \|$",
    (Path(__file__).parents[3] / "docs" / "keys.md").read_text("utf-8"),
    re.MULTILINE,
)


def text_of(value: object) -> str:
    return canonical_text(value, "x")


def message_for(value: object, argument: str = "x") -> str:
    with pytest.raises(InvalidKey) as caught:
        canonical_text(value, argument)
    return str(caught.value)


def through_json(value: object) -> object:
    return kombu_json.loads(kombu_json.dumps(value))


@pytest.mark.parametrize(("kind", "expression", "text"), DOCUMENTED)
def test_documented_table(kind: str, expression: str, text: str) -> None:
    assert text_of(eval(expression, dict(NAMES))) == text


def test_documented_table_is_found_and_its_other_rows_differ() -> None:
    assert len(DOCUMENTED) > 30
    kinds: dict[str, set[str]] = {}
    for kind, _, text in DOCUMENTED:
        kinds.setdefault(text, set()).add(kind.split(",")[0])
    crossing = {text: kinds for text, kinds in kinds.items() if len(kinds) > 1}
    assert crossing == {"1": {"int and its subclasses"}} or not crossing


@pytest.mark.parametrize(
    "value",
    [
        b"a", b"\xff", datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=timezone.utc), date(2024, 1, 1),
        time(1, 2, 3, 4), Decimal("1.10"), Decimal("Infinity"), UUID(int=5), math.inf, -math.inf,
        1, 1.0, None, True, "a\ud800",
    ],
)  # fmt: skip
def test_kombu_json_gives_these_back_as_they_were(value: object) -> None:
    back = through_json(value)
    assert back == value
    assert type(back) is type(value)
    assert text_of(back) == text_of(value)


@pytest.mark.parametrize("value", [{1}, frozenset({1}), bytearray(b"a"), memoryview(b"a"), timedelta(1)])
def test_kombu_json_refuses_these_as_the_docs_say(value: object) -> None:
    with pytest.raises(Exception, match="not JSON serializable"):
        kombu_json.dumps(value)
    text_of(value)


@pytest.mark.parametrize(
    "value",
    [
        (1, [2, (3,)]), Point(1, 2), OrderedDict(b=1, a=2), IntColor.RED, StrColor.RED,
        {IntColor.RED: 1}, {StrColor.RED: 1}, {True: 1},
        {7: "a", 2.5: "b", None: "c", False: "d", math.inf: "e"}, {-0.0: 1}, {-math.inf: 1},
        "\ud83d\ude00", {"\ud83d\ude00": 1}, -0.0, 10**400,
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        time(1, 2, tzinfo=ZoneInfo("Europe/Berlin")),
    ],
)  # fmt: skip
def test_what_json_changes_keeps_its_text(value: object) -> None:
    assert text_of(through_json(value)) == text_of(value)


any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates, too
keys = st.one_of(st.text(), st.integers(-(10**30), 10**30), st.floats(allow_nan=False), st.booleans(), st.none())
offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    any_text,
    st.binary(),
    st.datetimes(timezones=st.none() | offsets),
    st.dates(),
    st.times(),
    st.decimals(allow_nan=False),
    st.uuids(),
)


def as_json_key(key: object) -> str:
    return next(iter(through_json({key: 0})))  # type: ignore[call-overload]


def json_dicts(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    pairs = st.lists(st.tuples(keys, values), max_size=4, unique_by=lambda pair: as_json_key(pair[0]))
    return pairs.map(dict)


json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | json_dicts(inner)
)


@given(json_values)
def test_one_text_before_and_after_json(value: object) -> None:
    text = text_of(value)
    assert text_of(through_json(value)) == text
    assert text.isascii()


def same(a: object, b: object) -> bool:
    """What the table says: JSON's equality with types, written anew."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        left, right = ({as_json_key(key): value for key, value in d.items()} for d in (a, b))
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(a, str) and isinstance(b, str):
        return through_json(a) == through_json(b)
    return type(a) is type(b) and a == b


few = st.one_of(
    st.sampled_from([0, 1, 0.0, -0.0, 1.0, True, False, None, b"1", Decimal(1), Decimal("1.0")]),
    st.sampled_from(["", "1", "null", "[1]", '"', ",", "1,1", '","']),
    st.sampled_from([date(2024, 1, 1), datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=timezone.utc)]),
)
few_nested = st.recursive(
    few,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(st.sampled_from(["1", "a", None]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(few_nested, few_nested)
def test_two_values_share_a_text_only_if_the_table_says_so(a: object, b: object) -> None:
    assert (text_of(a) == text_of(b)) == same(a, b)


@given(any_text, any_text)
def test_strings_differ(a: str, b: str) -> None:
    assert (text_of(a) == text_of(b)) == (through_json(a) == through_json(b))


@given(st.dictionaries(st.text(), st.integers()), st.randoms())
def test_order_of_dicts_and_sets_does_not_matter(value: dict[str, int], random: object) -> None:
    items = list(value.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert text_of(dict(items)) == text_of(value)
    assert text_of({key for key, _ in items}) == text_of(frozenset(value))


@given(st.datetimes(timezones=offsets), offsets)
def test_one_instant_one_text(moment: datetime, zone: timezone) -> None:
    try:
        other = moment.astimezone(zone)
    except OverflowError:
        other = moment
    assert text_of(other) == text_of(moment)
    assert text_of(moment.replace(tzinfo=None)) != text_of(moment)


def test_instants_beyond_year_1_and_9999_in_utc_have_texts_of_their_own() -> None:
    plus, minus = timezone(timedelta(hours=1)), timezone(-timedelta(hours=1))
    ends = [datetime.max.replace(tzinfo=minus), datetime.min.replace(tzinfo=plus), datetime.max.replace(tzinfo=plus)]
    assert len({text_of(end) for end in ends}) == 3


@given(st.decimals(allow_nan=False), st.decimals(allow_nan=False))
def test_decimals_agree_by_value(a: Decimal, b: Decimal) -> None:
    assert (text_of(a) == text_of(b)) == (a == b)


def test_decimals_do_not_depend_on_the_context() -> None:
    value = Decimal("1.23456789012345678901234567890123456789")
    with localcontext() as context:
        context.prec = 3
        assert text_of(value) == f"decimal({value})"
    assert text_of(Decimal("1e999999")) == "decimal(1E+999999)"


def test_an_int_of_any_size_has_a_text() -> None:
    assert text_of(-(2**2047)) == str(-(2**2047))
    assert text_of(1 << 40_000) == "0x1" + "0" * 10_000
    assert text_of(-(1 << 40_000)) == "-0x1" + "0" * 10_000


def test_subclasses_cannot_choose_their_text() -> None:
    class Loud(int):
        def __repr__(self) -> str:
            return "loud"

    class Odd(str):
        def __str__(self) -> str:
            return "odd"

    class When(date, Enum):
        LEAP = (2024, 2, 29)

    assert text_of([Loud(3), Odd("a"), When.LEAP]) == '[3,"a",date(2024-02-29)]'


class Plain(Enum):
    RED = "red"


class Bits(Flag):
    ONE = 1


class Item:
    def __repr__(self) -> str:
        return "sk_live_secret"


class Claims:
    """Like a mock with a spec: isinstance() believes it to be a str."""

    __class__ = str  # type: ignore[assignment]


REMEDY = (
    "Pass an id or another plain value, leave the argument out of unique_on, "
    "or make the key yourself with lock_key=callable."
)


def test_message_for_an_unknown_object_names_path_type_and_remedy() -> None:
    with pytest.raises(InvalidKey) as caught:
        canonical_text({"items": [1, 2, 3, Item()]}, "order")
    assert str(caught.value) == (
        "argument order.items[3] can't be part of a lock's key: "
        f"it is of type '{__name__}.Item', which has no canonical form. {REMEDY}"
    )
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        (object(), "x", "it is of type 'object', which has no canonical form"),
        (object, "x", "it is of type 'type', which has no canonical form"),
        (len, "x", "it is of type 'builtin_function_or_method', which has no canonical form"),
        (1j, "x", "it is of type 'complex', which has no canonical form"),
        (range(3), "x", "it is of type 'range', which has no canonical form"),
        (iter([]), "x", "it is of type 'list_iterator', which has no canonical form"),
        ([Claims()], "x[0]", f"it is of type '{__name__}.Claims', which has no canonical form"),
        (Plain.RED, "x", f"it is a member of the Enum '{__name__}.Plain', which has no plain value "
         "(only an Enum that is also a str or an int has); pass its .value"),
        (Bits.ONE, "x", f"it is a member of the Enum '{__name__}.Bits', which has no plain value "
         "(only an Enum that is also a str or an int has); pass its .value"),
        (math.nan, "x", "it is a NaN, which doesn't even equal itself"),
        ([Decimal("NaN")], "x[0]", "it is a NaN, which doesn't even equal itself"),
        ([Decimal("sNaN")], "x[0]", "it is a NaN, which doesn't even equal itself"),
        ({math.nan: 1}, "x[key 1]", "its key in the dict is a NaN"),
        ({"a": 1, (1, 2): 1}, "x[key 2]", "its key in the dict is of type 'tuple', which JSON has no key for"),
        ({b"a": 1}, "x[key 1]", "its key in the dict is of type 'bytes', which JSON has no key for"),
        ({1 << 9999: 1}, "x[key 1]", "its key in the dict is of type 'int', which JSON has no key for"),
        ({1: 1, "1": 2}, "x[key 2]", "its dict has two keys that JSON writes alike, like 1 and '1'"),
        ({"__type__": "uuid", "__value__": {"hex": "00"}}, "x",
         "kombu takes a dict of just the keys __type__ and __value__ for something else"),
        ([{1: {(object(),)}}], "x[0][key 1]{...}[0]", "it is of type 'object', which has no canonical form"),
        ({"sk live 123": {"y": object()}}, "x[key 1].y", "it is of type 'object', which has no canonical form"),
    ],
)  # fmt: skip
def test_refusals(value: object, path: str, reason: str) -> None:
    assert message_for(value) == f"argument {path} can't be part of a lock's key: {reason}. {REMEDY}"


def test_cycles_and_depth() -> None:
    loop: list[object] = [1]
    loop.extend([loop, loop])
    assert message_for(loop) == f"argument x[1] can't be part of a lock's key: it contains itself. {REMEDY}"
    deep: list[object] = []
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    assert text_of(deep) == "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert f"it is nested deeper than {MAX_DEPTH} levels" in message_for([deep])
    very_deep: list[object] = []
    for _ in range(sys.getrecursionlimit() * 2):
        very_deep = [very_deep]
    assert f"it is nested deeper than {MAX_DEPTH} levels" in message_for(very_deep)


def test_a_list_may_be_there_twice_but_not_exponentially_often() -> None:
    once = [1]
    assert text_of([once, once]) == "[[1],[1]]"
    shared: list[object] = [1]
    for _ in range(40):
        shared = [shared, shared]
    assert "it holds more than 1000000 values" in message_for(shared)


def test_no_message_shows_content() -> None:
    for value in ({"secret key": object()}, [Item()], {"s3cret!": math.nan}, {("s3cret",): 1}):
        assert "s3cret" not in message_for(value)
        assert "secret key" not in message_for(value)
        assert "sk_live" not in message_for(value)
