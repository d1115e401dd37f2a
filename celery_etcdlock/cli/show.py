"""``celery etcdlock show``: one lock in full."""

from __future__ import annotations

import time

import click

from celery_etcdlock.cli.common import fail_not_found, inspecting, json_option, lock_table_of, print_json
from celery_etcdlock.cli.table import duration
from celery_etcdlock.core.description import in_words
from celery_etcdlock.core.lock_table import KeyEntry, LockEntry, lock_as_json
from celery_etcdlock.core.printable import printable


@click.command(name="show")
@click.argument("name_or_task_id")
@json_option
@click.pass_context
def command(context: click.Context, name_or_task_id: str, as_json: bool) -> None:
    """Show a lock with its owners and all that wait, by its name or the id of a task in its queue."""
    with inspecting(context) as (inspector, place):
        table = lock_table_of(inspector)
        locks = table.named(name_or_task_id) or table.of_task(name_or_task_id)
        if not locks:
            fail_not_found(inspector, place, name_or_task_id)
        ttls = inspector.ttls(entry.key.lease for lock in locks for entry in lock.owners + lock.waiters)
        if as_json:
            print_json([lock_as_json(lock, ttls) for lock in locks])
            return
        for lock in locks:
            click.echo("\n".join(_lines(lock, ttls)))


def _lines(lock: LockEntry, ttls: dict[int, float]) -> list[str]:
    lines = [printable(lock.name)]
    if abouts := [record.about for record in lock.records if record.about]:
        lines.append(f"  about       {printable(abouts[0])}")
    if not lock.owners:
        lines.append("  held by     nobody")
    for owner in lock.owners:
        lines.append(f"  held by     {described_owner(owner)}")
        key, left = owner.key, duration(ttls.get(owner.key.lease))
        lines.append(f"  lease       {key.lease:x}, {left} left if it isn't renewed")
        lines.append(f"  fencing     {key.mod_revision}")
    for number, waiter in enumerate(lock.waiters, 1):
        lines.append(f"  waiting {number:<3} {described_owner(waiter)}")
    if lock.others.retrying:
        lines.append(f"  retrying    {_messages(lock.others.retrying, 'comes back', 'come back')} for the lock")
    if lock.others.joining:
        lines.append(f"  joining     {_messages(lock.others.joining, 'waits', 'wait')} for the result of its task")
    if not lock.waiting:
        lines.append("  waiting     nobody")
    return lines


def _messages(number: int, does: str, do: str) -> str:
    return f"1 message {does}" if number == 1 else f"{number} messages {do}"


def described_owner(entry: KeyEntry) -> str:
    record = entry.key.record
    since = "" if record is None else f", for {duration(max(0.0, time.time() - record.since))}"
    return in_words(record) + since
