"""``celery etcdlock top``: the locks, live, in a terminal."""

from __future__ import annotations

import sys
import time
from itertools import chain
from typing import TYPE_CHECKING

import click

from celery_etcdlock.cli.common import WRONG_USAGE, fail, inspecting
from celery_etcdlock.core.lock_table import LockTable, SnapshotOutdated, contended_first
from celery_etcdlock.core.waiting_counts import NONE
from celery_etcdlock.locking.inspector import Inspector, waiting_counts

if TYPE_CHECKING:
    from rich.live import Live


#: TTLs are asked for anew this often, in seconds: they only show whether a holder is still renewing.
TTL_SECONDS = 5.0
#: Messages that wait without a queue position are counted by their workers about as often.
COUNTS_SECONDS = 3.0
#: Between two pictures, in seconds: where locks change all the time, drawing each change would only cost.
LEAST_SECONDS = 0.2


@click.command(name="top")
@click.argument("pattern", required=False)
@click.pass_context
def command(context: click.Context, pattern: str | None) -> None:
    """Show the locks live, the contended ones first, until interrupted. PATTERN filters by lock or task name.

    Needs rich: pip install 'celery-etcdlock[cli]'.
    """
    try:
        from rich.live import Live
    except ImportError:
        fail("`top` needs rich: pip install 'celery-etcdlock[cli]' (`ls` and `watch` work without)", WRONG_USAGE)
    if not sys.stdout.isatty():
        fail("`top` draws on a terminal: use `ls` or `watch --json` in scripts", WRONG_USAGE)
    with inspecting(context) as (inspector, place), Live(screen=True, auto_refresh=False) as live:
        while True:
            try:
                _follow(inspector, live, pattern, place)
            except SnapshotOutdated:
                continue


def _follow(inspector: Inspector, live: Live, pattern: str | None, place: str) -> None:
    from celery_etcdlock.cli.screen import rows_that_fit, screen

    entries, revision = inspector.snapshot()
    table = LockTable(entries)
    ttls: dict[int, float] = {}
    counts_at = ttls_at = drawn_at = -TTL_SECONDS
    for changes in chain([None], inspector.changes(revision)):
        for change in changes or ():
            table.apply(change)
        now = time.monotonic()
        if changes and now - drawn_at < LEAST_SECONDS:
            continue  # drawn with the next changes, or within a second when there are none
        table.forget_those_over(time.time())
        if now - counts_at >= COUNTS_SECONDS:
            table.counts, counts_at = waiting_counts(inspector), now
        locks = contended_first(table.locks(pattern))
        if now - ttls_at >= TTL_SECONDS:
            shown = locks[: rows_that_fit(live.console.height)]
            ttls = inspector.ttls(owner.key.lease for lock in shown for owner in lock.owners)
            ttls_at = now
        others = table.counts.others if pattern is None else NONE
        drawing = screen(locks, ttls, live.console.width, live.console.height, where=place, others=others)
        live.update(drawing, refresh=True)
        drawn_at = time.monotonic()
