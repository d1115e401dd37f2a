"""A wrong configuration ends ``celery worker`` and ``celery beat`` with one line instead of a traceback.

That holds for errors that this package raised: others keep their traceback. ``app.Worker()`` in code raises as before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any

import click
from celery.bin.beat import beat as beat_command
from celery.bin.worker import worker as worker_command
from celery.exceptions import ImproperlyConfigured

from celery_etcdlock.errors import InvalidSetting


class CannotStart(click.ClickException):
    """In a line: what is wrong, and the remedy."""

    exit_code = 2


def end_in_one_line() -> None:
    """Once in a process."""
    for command in (worker_command, beat_command):
        assert command.callback is not None
        command.callback = _in_one_line(command.callback)


def _in_one_line(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return callback(*arguments, **options)
        except (ImproperlyConfigured, InvalidSetting) as error:
            if not _is_ours(error.__traceback__):
                raise
            raise CannotStart(str(error)) from None

    return run


def _is_ours(traceback: TracebackType | None) -> bool:
    """Whether this package raised it: its frame is the last."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and str(traceback.tb_frame.f_globals.get("__name__")).startswith("celery_etcdlock.")
