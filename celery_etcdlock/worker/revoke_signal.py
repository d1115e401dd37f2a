"""Signals a revoke at once: Celery itself looks only when a message is due, which may be hours later."""

from __future__ import annotations

import functools
from typing import Any

from celery.utils.dispatch import Signal
from celery.utils.functional import maybe_list
from celery.worker.control import Panel

#: Sent on the hub after each revoke that reaches this worker, with its ``task_ids``: none where stamps are revoked.
revoked = Signal(name="etcdlock_revoked", providing_args=["task_ids"])


def tell_of_revokes() -> None:
    """Have the worker's remote control send the signal. Does so once, however often it is called."""
    for name in ("revoke", "revoke_by_stamped_headers"):
        command = Panel.data[name]
        if not hasattr(command, "_etcdlock"):
            Panel.data[name] = _telling(command)


def _telling(command: Any) -> Any:
    @functools.wraps(command)
    def revoke_and_tell(state: Any, *args: Any, **arguments: Any) -> Any:
        reply = command(state, *args, **arguments)
        revoked.send(sender=None, task_ids=maybe_list(arguments.get("task_id")) or [])
        return reply

    revoke_and_tell._etcdlock = True  # type: ignore[attr-defined]
    return revoke_and_tell
