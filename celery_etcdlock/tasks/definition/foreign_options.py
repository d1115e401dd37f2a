"""Options that look like a lock's and mean nothing here: those of other packages, and misspelt ones.

Celery silently takes any keyword of a task as an attribute, and any option of a call as the message's. So an option
left from a migration, or misspelt, would leave a lock on the task's name alone, which skips what it shouldn't.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from celery_etcdlock.core.task_options import OPTION_NAMES
from celery_etcdlock.core.value_checks import did_you_mean
from celery_etcdlock.errors import InvalidOption

#: What other packages call theirs, whose it is, and what is written here instead.
FOREIGN = {
    "once": ("celery-once", "unique_on for its keys, on_conflict='skip' for graceful, lock_ttl for timeout"),
    "raise_on_duplicate": ("celery-singleton", "on_conflict='raise'"),
    "lock_expiry": ("celery-singleton", "lock_ttl, or pending_ttl for a queued call"),
    "heimdall": ("celery-heimdall", "lock='until_executed' and unique_on, or unique_for"),
}


def why_not(name: str) -> str | None:
    """What is wrong with the option ``name``, if it is one that somebody takes for a lock's."""
    if name in FOREIGN:
        package, instead = FOREIGN[name]
        return f"{name!r} is an option of {package} and does nothing here: write {instead}"
    near = difflib.get_close_matches(name, OPTION_NAMES, n=1, cutoff=0.8)
    if near and near[0] != name:
        return (
            f"unknown option {name!r}{did_you_mean(name, OPTION_NAMES)}; "
            f"celery-etcdlock's options are {', '.join(OPTION_NAMES)}"
        )
    return None


def refuse_foreign_options(task: Any, options: Mapping[str, Any]) -> None:
    """Of one call, ``apply_async(...)``. Raises ``InvalidOption``."""
    for name in options:
        if name not in FOREIGN and name not in OPTION_NAMES:
            continue
        if name in (options.get("stamped_headers") or ()):
            continue
        why = why_not(name) or f"{name!r} is an option of the task, not of a call: write it on the task"
        raise InvalidOption(f"task {task.name!r}, apply_async: {why}")
