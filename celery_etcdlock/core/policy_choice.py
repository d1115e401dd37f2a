"""Which policy a conflict meets: the task's own for that place, else the setting where that makes sense.

In a chord's header a skipped member would fail the body, so there it is ``retry`` unless the task's own.
"""

from __future__ import annotations

from celery_etcdlock.core.policies import POLICIES
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.core.task_options import TaskOptions
from celery_etcdlock.errors import InvalidOption, LockConflict


def policy_of(
    options: TaskOptions, settings: Settings, conflict: LockConflict, *, at_enqueue: bool, in_chord_header: bool
) -> str:
    """The policy's name. Raises ``InvalidOption`` when a task's callable returns something else."""
    chosen = options.policies.enqueue if at_enqueue else options.policies.run
    if chosen is None:
        return "retry" if in_chord_header else _default(options, settings, at_enqueue=at_enqueue)
    if isinstance(chosen, str):
        return chosen
    name = chosen(conflict)
    if not isinstance(name, str) or name not in POLICIES:
        raise InvalidOption(
            f"on_conflict {getattr(chosen, '__qualname__', chosen)!r} returned {name!r}: it is called with the "
            f"LockConflict and must return one of {', '.join(map(repr, POLICIES))}"
        )
    return name


def _default(options: TaskOptions, settings: Settings, *, at_enqueue: bool) -> str:
    name = settings.on_conflict
    if not at_enqueue:
        # Of these, one is meant to be queued while another runs.
        return "retry" if options.lock == "until_and_while_executing" else name
    facts = POLICIES[name]
    has_no_run = options.lock == "until_executing" and facts.waits and not facts.at_enqueue
    has_no_holder = facts.replaces and (options.lock == "until_expired" or options.lock_limit > 1)
    return "skip" if has_no_run or has_no_holder else name
