"""What all commands share: the app's locks as an operator sees them, exit codes, output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NoReturn

import click
from celery.exceptions import ImproperlyConfigured

from celery_etcdlock.app.celery_settings import settings_of
from celery_etcdlock.core.lock_table import LockTable
from celery_etcdlock.core.printable import printable
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.errors import InvalidSetting, LockUnavailable
from celery_etcdlock.locking.inspector import Inspector, waiting_counts
from celery_etcdlock.wiring import check_inspectable, open_inspector

NOT_DONE = 1
WRONG_USAGE = 2
UNAVAILABLE = 3

CHECK_PLACE = "check the app (-A), etcdlock_prefix and etcdlock_endpoints."

PORT = click.IntRange(0, 65535)

json_option = click.option("--json", "as_json", is_flag=True, help="JSON on standard output, for scripts.")


def settings_for(context: click.Context) -> Settings:
    """The app's settings. Ends the command when they are wrong, or lead to locks that nobody can look at."""
    try:
        settings = settings_of(context.obj.app)
        check_inspectable(settings)
    except (ImproperlyConfigured, InvalidSetting) as error:
        fail(str(error), WRONG_USAGE)
    return settings


@contextmanager
def inspecting(context: click.Context) -> Iterator[tuple[Inspector, str]]:
    """The operator's view, during a command, and where it looks. Ends the command when etcd is unreachable."""
    settings = settings_for(context)
    # Said, so that an empty list of the wrong place isn't taken for "all is free".
    place = f"{settings.where}, prefix {settings.prefix}"
    try:
        with closing(open_inspector(settings)) as inspector:
            yield inspector, place
    except InvalidSetting as error:
        fail(str(error), WRONG_USAGE)
    except LockUnavailable as error:
        fail(f"{error}\nNobody knows which locks are held: {place} can't be asked.", UNAVAILABLE)
    except KeyboardInterrupt:
        sys.exit(0)


def nothing_held(inspector: Inspector, place: str) -> str:
    """What to say where no lock is held: good news only where locks are taken at all."""
    text = f"no locks held ({place})"
    traces = inspector.traces()
    if not traces.used:
        text += f"\nNo worker was ever started with this prefix, and nothing is stored there: {CHECK_PLACE}"
        if traces.others:
            text += f"\nPrefixes that are in use there: {printable(', '.join(traces.others))}"
    return text


def fail_not_found(inspector: Inspector, place: str, name_or_task_id: str) -> NoReturn:
    asked = printable(name_or_task_id)
    text = f"no lock of this name is held, and no task of this id holds or awaits one: {asked} ({place})"
    fail(text if inspector.traces().used else f"{text}\n{nothing_held(inspector, place)}", NOT_DONE)


def lock_table_of(inspector: Inspector) -> LockTable:
    entries, _ = inspector.snapshot()
    table = LockTable(entries, waiting_counts(inspector))
    table.forget_those_over(time.time())
    return table


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def fail(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)
