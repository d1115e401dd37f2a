"""What ``top`` draws: at 80 x 24, with hundreds of locks, names longer than a line and characters of any width."""

from __future__ import annotations

import io

import pytest

from celery_etcdlock.core.lock_table import KeyEntry, LockEntry, LockTable
from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.waiting_counts import NONE, WaitingCount, WaitingCounts

pytest.importorskip("rich")

from rich.cells import cell_len
from rich.console import Console

from celery_etcdlock.cli.screen import screen

NOW = 100_000.0


def entry(name: str, revision: int, since: float) -> KeyEntry:
    record = Record(Delivery(f"id-{revision}"), "proj.sync", "worker-7.example.com", 4711, since)
    return KeyEntry(name, escape_name(name), Key(str(revision), revision, revision, record, 7))


def three_hundred() -> list[LockEntry]:
    entries = [entry(f"proj.sync:{n:032x}", n, NOW - n) for n in range(1, 301)]
    return LockTable(
        [*entries, entry(f"proj.sync:{5:032x}", 900, NOW - 3), entry(f"proj.sync:{9:032x}", 901, NOW)]
    ).locks()


def drawn(locks: list[LockEntry], width: int = 80, height: int = 24, others: WaitingCount = NONE) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    where = "/celery-etcdlock/proj/ on etcd:2379"
    console.print(screen(locks, {7: 28.0}, width, height, where=where, others=others, now=NOW))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_80_by_24_keeps_the_figures_and_counts_what_is_left() -> None:
    lines = drawn(three_hundred())
    assert len(lines) == 24
    assert lines[0].startswith("300 locks held, 2 waiting")
    assert lines[1] == "/celery-etcdlock/proj/ on etcd:2379"
    assert lines[2].split() == ["LOCK", "WHERE", "FOR", "TTL", "WAITING"]
    assert lines[-1] == "and 280 more"
    # The contended ones, of these the oldest; then the longest held.
    assert [line.split()[2:] for line in lines[3:6]] == [["9s", "28s", "1"], ["5s", "28s", "1"], ["5m00s", "28s", "-"]]
    assert lines[3].startswith("proj.sync:000")
    assert "…000009 " in lines[3]


def test_80_by_24_shows_who_retries_and_joins_and_what_is_free() -> None:
    table = LockTable([entry(f"proj.sync:{n:032x}", n, NOW - n) for n in range(1, 301)])
    busy, free = f"proj.sync:{77:032x}", f"proj.report:{1:032x}"
    table.counts = WaitingCounts({busy: WaitingCount(12345, 678), free: WaitingCount(0, 1)}, WaitingCount(5, 0))
    lines = drawn(table.locks(), others=table.counts.others)
    assert len(lines) == 24
    assert all(cell_len(line) <= 80 for line in lines)
    assert lines[0] == "300 locks held, 0 waiting, 12350 retrying, 679 joining · ctrl-c ends"
    assert lines[2].split() == ["LOCK", "WHERE", "FOR", "TTL", "WAITING", "RETRY", "JOIN"]
    assert lines[3].split()[2:] == ["1m17s", "28s", "-", "12345", "678"]
    assert lines[3].split()[0].endswith("00004d")
    assert (lines[4][:11], lines[4].split()[1:]) == ("proj.report", ["-", "-", "-", "-", "-", "1"])
    assert lines[-1] == "and 281 more"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("name", ["x", "名" * 100, "long" * 60, "\u202egnp.\x1b[2J", "e\u0301" * 80])
def test_no_name_pushes_a_figure_out(name: str, width: int) -> None:
    lines = drawn(LockTable([entry(name, 1, NOW - 60)]).locks(), width)
    assert len(lines) == 4
    assert all(cell_len(line) <= width for line in lines)
    assert lines[-1].endswith("1m00s  28s        -"[-width:]) or width < 40
    assert "\x1b" not in lines[-1]
    assert "\u202e" not in lines[-1]


def test_a_wide_terminal_shows_all() -> None:
    lines = drawn(three_hundred(), 180, 60)
    assert lines[2].split() == ["LOCK", "OWNER", "TASK", "WHERE", "FOR", "TTL", "WAITING"]
    assert lines[3].split()[:4] == [f"proj.sync:{9:032x}", "id-9", "proj.sync", "worker-7.example.com:4711"]
