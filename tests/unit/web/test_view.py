"""Which of all locks a look at the page shows: what the server filters, sorts and pages."""

from __future__ import annotations

import json

import pytest

from celery_etcdlock.core.lock_table import KeyEntry, LockEntry, LockTable
from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.web.view import MOST_BARS, MOST_ROWS, View, bounded_json, page_of, timeline_of


def entry(name: str, revision: int, since: float = 0.0, *, limit: int = 1, host: str = "box") -> KeyEntry:
    record = Record(Delivery(f"id-{revision}"), "proj.Sync", host, 7, since, limit)
    return KeyEntry(name, escape_name(name), Key(str(revision), revision, revision, record, 9))


def table(*more: KeyEntry) -> list[LockEntry]:
    return LockTable([*(entry(f"n{n:05}", n, since=-n) for n in range(1, 5001)), *more]).locks()


def names(locks: list[LockEntry]) -> list[str]:
    return [lock.name for lock in locks]


def test_contended_ones_come_first_whatever_their_names() -> None:
    locks = table(entry("zzz", 9001, 5), entry("zzz", 9002), entry("zzz", 9003), entry("n00007", 9004))
    shown, matching, page = page_of(locks, View(size=4))
    assert (matching, page) == (5001, 1)
    assert names(shown) == ["zzz", "n00007", "n05000", "n04999"]
    assert names(page_of(locks, View(size=2, sort="name"))[0]) == ["n00001", "n00002"]
    assert names(page_of(locks, View(size=2, sort="oldest"))[0]) == ["n05000", "n04999"]


def test_a_page_beyond_the_last_is_the_last() -> None:
    shown, _, page = page_of(table(), View(sort="name", page=999, size=1000))
    assert (page, names(shown)[-1]) == (5, "n05000")
    assert page_of([], View(page=3)) == ([], 0, 1)


@pytest.mark.parametrize("text", ["STRASSE", "id-9001", "proj.sync", "elsewhere"])
def test_a_filter_finds_names_tasks_ids_and_hosts_on_any_page(text: str) -> None:
    locks = [
        *LockTable([entry("Straße", 9001, host="elsewhere")]).locks(),
        *LockTable([KeyEntry("x", "x", BROKEN)]).locks(),
    ]
    assert names(page_of(locks, View.from_query({"filter": text}))[0]) == ["Straße"]


BROKEN = Key("t", 1, 1, None)


@pytest.mark.parametrize("query", [{"sort": "x"}, {"page": "0"}, {"page": "-1"}, {"size": "1e3"}, {"page": "9" * 5000}])
def test_a_wrong_query_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"sort must be|must be a whole number"):
        View.from_query(query)


def test_what_a_browser_gets_is_bounded() -> None:
    crowd = [entry("crowd", n, limit=300) for n in range(1, 1001)]
    (lock,) = LockTable(crowd).locks()
    told = bounded_json(lock, {})
    assert (told["owning"], told["waiting"]) == (300, 700)
    assert len(json.dumps(told)) < 40_000
    assert View.from_query({"size": "100000"}).size == 100
    bars = [
        {"lock": f"n{n % 5000}", "task": None, "task_id": None, "host": None, "began": 1.0, "ended": 2.0}
        for n in range(20_000)
    ]
    rows, matching = timeline_of(bars, LockTable(crowd).locks(), View())
    assert (len(rows), matching) == (MOST_ROWS, 5000)
    assert sum(len(row["bars"]) for row in rows) <= MOST_BARS


def test_the_timeline_prefers_contended_and_busy_locks() -> None:
    bars = [
        {"lock": f"n{n:02}", "task": "t", "task_id": "i", "host": "h", "began": 1.0, "ended": 2.0} for n in range(60)
    ]
    bars += [bars[58]] * 2
    locks = LockTable([entry("n59", 1), entry("n59", 2)]).locks()
    rows, _ = timeline_of(bars, locks, View())
    assert [(row["lock"], row["waiting"], row["holds"]) for row in rows[-2:]] == [("n58", 0, 3), ("n59", 1, 1)]
    assert [row["lock"] for row in timeline_of(bars, locks, View(text="n1"))[0]] == [f"n1{n}" for n in range(10)]
