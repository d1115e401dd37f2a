"""``celery -A proj etcdlock ...``: the operator's commands.

Celery imports this module with every ``celery`` command, by the entry point ``celery.commands``; so it imports next to
nothing, and each command's module only when that command is asked for.
"""

from __future__ import annotations

import importlib

import click

from celery_etcdlock.cli.one_line import end_in_one_line
from celery_etcdlock.cli.worker_options import extend_worker_command

__all__ = ["etcdlock"]

#: So that ``celery inspect`` knows ``locks``.
importlib.import_module("celery_etcdlock.worker.inspect_commands")
extend_worker_command()
end_in_one_line()

COMMANDS = ("ls", "show", "release", "watch", "top", "doctor", "web", "dev")


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"celery_etcdlock.cli.{cmd_name}").command
        return command


@click.group(cls=_Commands, name="etcdlock")
def etcdlock() -> None:
    """Look at locks, free them, and check their etcd.

    Exit codes: 0 done; 1 not found, not released, or something is broken; 2 wrong usage or settings; 3 etcd can't be
    asked.
    """
