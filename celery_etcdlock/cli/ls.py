"""``celery etcdlock ls``: who holds what."""

from __future__ import annotations

import time
from typing import Any

import click

from celery_etcdlock.cli.beat import beat_text, shows_beat, with_beats
from celery_etcdlock.cli.session import board_of, inspecting, json_option, print_json
from celery_etcdlock.cli.table import HEADINGS, rows_of, text_table
from celery_etcdlock.core.beat_view import beats_of
from celery_etcdlock.core.survey import HeldLock, described

__all__ = ["command", "lock_as_json"]


@click.command(name="ls")
@click.argument("pattern", required=False)
@json_option
@click.pass_context
def command(context: click.Context, pattern: str | None, as_json: bool) -> None:
    """List the locks that are held, with owner, host, age, TTL left and how many wait, and the beats.

    PATTERN filters by lock or task name: 'reports.*', 'beat:*'. Nothing held is an empty list, and no error.
    """
    with inspecting(context) as inspector:
        board = board_of(inspector)
        locks = board.locks(pattern)
        beats = [beat for beat in beats_of(inspector.books(), board.locks()) if shows_beat(beat, pattern)]
        ttls = inspector.ttls(place.lease for lock in locks for place in lock.owners)
        if as_json:
            print_json(with_beats([lock_as_json(lock, ttls) for lock in locks], beats))
        elif locks:
            click.echo(text_table(HEADINGS, rows_of(locks, ttls)))
        else:
            click.echo("no locks are held" if pattern is None else f"no locks match {pattern!r}", err=True)
        if not as_json:
            for beat in beats:
                click.echo("\n" + beat_text(beat, time.time()))


def lock_as_json(lock: HeldLock, ttls: dict[int, float]) -> dict[str, Any]:
    return {
        "lock": lock.name,
        "owners": [described(place, ttls.get(place.lease)) for place in lock.owners],
        "waiters": [described(place, ttls.get(place.lease)) for place in lock.waiters],
    }
