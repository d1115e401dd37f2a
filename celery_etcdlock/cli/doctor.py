"""``celery etcdlock doctor``: is everything as locks need it, and if not, what to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict

import click

from celery_etcdlock.app.celery_settings import broker_fingerprint
from celery_etcdlock.cli.common import CHECK_PLACE, NOT_DONE, json_option, print_json, settings_for
from celery_etcdlock.cli.table import waits_in_words
from celery_etcdlock.core.beat_view import beat_check_results, beats_of
from celery_etcdlock.core.check_results import CheckResult, Level, broken, ok, warning
from celery_etcdlock.core.lock_table import LockTable, Traces, number_held
from celery_etcdlock.core.printable import printable
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.errors import InvalidSetting, LockUnavailable
from celery_etcdlock.locking.clock_check import check_clock
from celery_etcdlock.locking.inspector import waiting_counts
from celery_etcdlock.wiring import open_client, open_inspector, open_redis_client, open_redis_store

_MARKS = {Level.OK: ("ok", "green"), Level.WARNING: ("warning", "yellow"), Level.BROKEN: ("BROKEN", "red")}


@click.command(name="doctor")
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Check settings, etcd, permissions, database space, clock and what is under the prefix; say what to do.

    Exits with 1 if something is broken; warnings alone exit with 0.
    """
    settings = settings_for(context)
    found: list[CheckResult] = []
    for finding in _check_results(context, settings):
        found.append(finding)
        if as_json:
            continue
        mark, colour = _MARKS[finding.level]
        click.echo(f"{click.style(f'{mark:<8}', fg=colour)} {finding.subject}: {finding.text}")
        if finding.remedy:
            click.echo(f"{'':<8} -> {finding.remedy}")
    levels = [finding.level for finding in found]
    bad, warnings = levels.count(Level.BROKEN), levels.count(Level.WARNING)
    if as_json:
        print_json([asdict(finding) | {"level": finding.level.value} for finding in found])
    else:
        click.echo(f"{bad} broken, {warnings} warnings, {len(found) - bad - warnings} fine")
    if bad:
        raise SystemExit(NOT_DONE)


def _check_results(context: click.Context, settings: Settings) -> Iterator[CheckResult]:
    where = f"{', '.join(settings.endpoints)}, prefix {settings.prefix}, TTL {settings.ttl} s"
    yield ok("settings", f"{where}, timeout {settings.timeout:g} s")
    if settings.prefix == "/celery-etcdlock/default/":
        remedy = "name the app (Celery('proj')) or set etcdlock_prefix"
        yield warning("settings", "the app has no name, so all such apps share their locks", remedy)
    if settings.in_redis:
        yield from _redis(settings)
    else:
        # Only here, since it brings protobuf and hpack.
        from celery_etcdlock.etcd.diagnosis import diagnose

        yield from diagnose(lambda endpoints: open_client(settings, endpoints), settings)
    yield from _under_the_prefix(context, settings)
    yield from check_clock()


def _redis(settings: Settings) -> Iterator[CheckResult]:
    try:
        client, store = open_redis_client(settings), open_redis_store(settings)
    except InvalidSetting as error:
        yield broken("redis-py", str(error))
        return
    from celery_etcdlock.locking.redis_diagnosis import diagnose_redis

    with closing(store):
        yield from diagnose_redis(client, store, settings)


def _under_the_prefix(context: click.Context, settings: Settings) -> Iterator[CheckResult]:
    try:
        with closing(open_inspector(settings)) as inspector:
            entries, _ = inspector.snapshot()
            saved_states = inspector.saved_states()
            counts = waiting_counts(inspector)
            traces = Traces(used=True) if entries else inspector.traces()
    except (InvalidSetting, LockUnavailable):
        return  # said already
    locks = LockTable(entries, counts).locks()
    for beat in beats_of(saved_states, locks):
        yield from beat_check_results(beat, time.time())
    if locks or traces.used:
        yield ok("locks", f"{number_held(locks)} held, {waits_in_words(locks, counts.others)}")
    else:
        text = "none held, and no worker was ever started with this prefix"
        if traces.others:
            text += f"; in use there: {printable(', '.join(traces.others))}"
        yield warning("locks", text, CHECK_PLACE)
    own = broker_fingerprint(context.obj.app)
    if foreign := [entry for entry in entries if (record := entry.key.record) and record.broker not in (None, own)]:
        text = f"{len(foreign)} of them belong to tasks of another broker, such as {printable(foreign[0].name)}"
        remedy = "if these are two deployments, give each its own etcdlock_prefix; else they skip each other's tasks"
        yield warning("locks", text, remedy)
    if unreadable := [entry for entry in entries if entry.key.record is None]:
        text = f"{len(unreadable)} can't be read, such as {printable(unreadable[0].name)}: they count as held"
        remedy = "a newer version wrote them, or somebody else: see `etcdlock show`"
        yield warning("locks", text, remedy)
    if leaseless := [entry for entry in entries if not entry.key.lease]:
        text = f"{len(leaseless)} have no lease and never expire, such as {printable(leaseless[0].name)}"
        yield broken("locks", text, "`celery etcdlock release --force` frees them")
