"""``celery etcdlock top``: the locks, live, in a terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from celery_etcdlock.cli.common import WRONG_USAGE, fail, inspecting
from celery_etcdlock.cli.table import HEADINGS, rows_of
from celery_etcdlock.core.lock_table import LockEntry, LockTable, SnapshotOutdated
from celery_etcdlock.locking.inspector import Inspector

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

__all__ = ["command"]

#: TTLs are asked for anew this often, in seconds: they only show whether a holder is still renewing.
TTL_SECONDS = 5.0


@click.command(name="top")
@click.argument("pattern", required=False)
@click.pass_context
def command(context: click.Context, pattern: str | None) -> None:
    """Show the locks live, oldest first, until interrupted. PATTERN filters by lock or task name.

    Needs rich: pip install 'celery-etcdlock[cli]'.
    """
    try:
        from rich.live import Live
    except ImportError:
        fail("`top` needs rich: pip install 'celery-etcdlock[cli]' (`ls` and `watch` work without)", WRONG_USAGE)
    if not sys.stdout.isatty():
        fail("`top` draws on a terminal: use `ls` or `watch --json` in scripts", WRONG_USAGE)
    with inspecting(context) as inspector, Live(screen=True, auto_refresh=False) as live:
        while True:
            try:
                _follow(inspector, live, pattern)
            except SnapshotOutdated:
                continue


def _follow(inspector: Inspector, live: Live, pattern: str | None) -> None:
    entries, revision = inspector.snapshot()
    table = LockTable(entries)
    ttls: dict[int, float] = {}
    ttls_at = 0.0
    seen = 0
    for changes in inspector.changes(revision):
        for change in changes or ():
            table.apply(change)
            seen += 1
        table.forget_those_over(time.time())
        locks = sorted(table.locks(pattern), key=_age_order)
        if time.monotonic() - ttls_at > TTL_SECONDS:
            ttls = inspector.ttls(owner.lease for lock in locks[: live.console.height] for owner in lock.owners)
            ttls_at = time.monotonic()
        live.update(_screen(locks, ttls, live.console.height, seen), refresh=True)


def _age_order(lock: LockEntry) -> float:
    record = lock.owners[0].key.record
    return record.since if record is not None else 0.0


def _screen(locks: list[LockEntry], ttls: dict[int, float], height: int, seen: int) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    waiting = sum(len(lock.waiters) for lock in locks)
    held = "1 lock" if len(locks) == 1 else f"{len(locks)} locks"
    head = Text(f"{held} held, {waiting} tasks waiting, {seen} changes since the start · ctrl-c ends")
    table = Table(box=None, pad_edge=False, expand=True)
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("FOR", "TTL", "WAITING") else "left")
    for row in rows_of(locks, ttls)[: max(1, height - 4)]:
        style = "yellow" if row[-1] != "-" else None
        table.add_row(*(Text(cell) for cell in row), style=style)
    return Group(head, Text(), table)
