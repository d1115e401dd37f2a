"""``celery etcdlock ls``: who holds what."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

import click

from celery_etcdlock.cli.beat import beat_text, with_beats
from celery_etcdlock.cli.common import inspecting, json_option, lock_table_of, nothing_held, print_json
from celery_etcdlock.cli.table import table_of, text_table
from celery_etcdlock.core.beat_view import beats_of
from celery_etcdlock.core.lock_table import lock_as_json


@click.command(name="ls")
@click.argument("pattern", required=False)
@json_option
@click.pass_context
def command(context: click.Context, pattern: str | None, as_json: bool) -> None:
    """List the locks that are held, with owner, host, age, TTL left and how many wait, and the beats.

    WAITING counts the lock's queue (wait, replace). RETRY and JOIN count the messages that come back by themselves, as
    their workers counted them seconds ago; a lock that nobody holds is listed as long as such messages wait for it.

    PATTERN filters by lock or task name: 'reports.*', 'beat:*'. Nothing held is an empty list, and no error.
    Standard error says which etcd and prefix this is about.
    """
    with inspecting(context) as (inspector, place):
        table = lock_table_of(inspector)
        locks = table.locks(pattern)
        beats = [
            beat for beat in beats_of(inspector.saved_states(), table.locks()) if fnmatchcase(beat.name, pattern or "*")
        ]
        ttls = inspector.ttls(entry.key.lease for lock in locks for entry in lock.owners)
        if as_json:
            print_json(with_beats([lock_as_json(lock, ttls) for lock in locks], beats))
            return
        if locks:
            click.echo(f"locks of {place}", err=True)
            click.echo(text_table(*table_of(locks, ttls)))
            others = table.counts.others.total
            if others and pattern is None:
                click.echo(f"and {others} messages that retry or join for other locks", err=True)
        elif table.locks():
            click.echo(f"none of the locks that are held matches {pattern!r} ({place})", err=True)
        else:
            click.echo(nothing_held(inspector, place), err=True)
        for beat in beats:
            click.echo("\n" + beat_text(beat, time.time()))
