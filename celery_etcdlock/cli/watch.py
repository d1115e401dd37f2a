"""``celery etcdlock watch``: what happens to locks, line by line, as it happens."""

from __future__ import annotations

import json
import time

import click

from celery_etcdlock.cli.common import inspecting, json_option
from celery_etcdlock.cli.show import described_owner
from celery_etcdlock.core.lock_table import LockEntry, LockTable, SnapshotOutdated, Transition, described, matching
from celery_etcdlock.core.printable import printable


@click.command(name="watch")
@click.argument("pattern", required=False)
@json_option
@click.pass_context
def command(context: click.Context, pattern: str | None, as_json: bool) -> None:
    """Print each acquire, wait and release as it happens, until interrupted. PATTERN filters by lock or task name.

    With --json, one JSON object a line. Reads etcd alone: a task that was skipped leaves no trace there, see Celery's
    events for those.
    """
    with inspecting(context) as (inspector, _):
        while True:
            entries, revision = inspector.snapshot()
            table = LockTable(entries)
            try:
                for changes in inspector.changes(revision):
                    for happening in map(table.apply, changes or ()):
                        lock = LockEntry(happening.entry.name, (happening.entry,), ())
                        if pattern is None or matching(lock, pattern):
                            click.echo(_line(happening, as_json=as_json))
            except SnapshotOutdated:
                click.echo("some changes were missed: etcd had compacted them", err=True)


def _line(happening: Transition, *, as_json: bool) -> str:
    entry = happening.entry
    if as_json:
        facts = described(entry) | {"at": round(time.time(), 3), "event": happening.kind.value, "lock": entry.name}
        return json.dumps(facts, sort_keys=True)
    at = time.strftime("%H:%M:%S")
    return f"{at}  {happening.kind.value:<15} {printable(entry.name)}  {described_owner(entry)}"
