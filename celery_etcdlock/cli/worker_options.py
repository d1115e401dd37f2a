"""Adds ``--etcdlock-dedup`` to ``celery worker`` where this package is installed, and makes the setting work there.

So worker-level deduplication needs nothing in the app's code. It doesn't reach a worker that code makes
(``app.Worker()``), unless one of its tasks is a ``SingletonTask``.
"""

from __future__ import annotations

from typing import Any

import click
from celery.bin.worker import worker as worker_command
from celery.signals import worker_init

HELP = (
    "Lock tasks that have no lock of their own. 'task_id' (the default): no message runs twice. Task name patterns, "
    "separated by commas: matching tasks don't run twice at once with the same arguments. Overrides etcdlock_dedup."
)


def extend_worker_command() -> None:
    """Once in a process."""
    option = click.Option(
        ["--etcdlock-dedup"],
        is_flag=False,
        flag_value="task_id",
        metavar="[task_id|PATTERN,...]",
        expose_value=False,
        callback=_set_dedup,
        help=HELP,
    )
    worker_command.params.append(option)
    worker_init.connect(_add_steps, weak=False)


def _set_dedup(context: click.Context, _option: click.Parameter, value: str | None) -> None:
    if value is None or context.resilient_parsing:
        return
    # Only here: every ``celery`` command imports this module.
    from celery_etcdlock.core.dedup_rules import rules_from_words

    words = [word.strip() for word in value.split(",")]
    if not all(words):
        raise click.BadParameter("name 'task_id' or patterns of task names, separated by single commas")
    app, setting = context.obj.app, rules_from_words(words)
    app.conf["etcdlock_dedup"] = setting
    namespace = (getattr(app, "namespace", None) or "").upper()
    if namespace:
        app.conf[f"{namespace}_ETCDLOCK_DEDUP"] = setting


def _add_steps(sender: Any, **_: Any) -> None:
    app = sender.app
    if any(isinstance(key, str) and key.lower().endswith("etcdlock_dedup") for key in app.conf):
        # Only here: a worker without locks needn't pay for it.
        from celery_etcdlock.tasks.singleton_task import CONSUMER_STEPS, WORKER_STEPS

        app.steps["worker"].update(WORKER_STEPS)
        app.steps["consumer"].update(CONSUMER_STEPS)
