"""What is refused when a task is bound or called, for a definition error beats a double run.

*Options.* Celery silently takes any keyword of a task as an attribute, and any option of a call as the message's. So an
option left from another package, or misspelt, would leave a lock on the task's name alone, which skips what it
shouldn't.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from celery import Celery, Task
from celery.app.annotations import resolve_all

from celery_etcdlock.core.task_options import OPTION_NAMES, unknown_option
from celery_etcdlock.errors import InvalidOption, LockConflict
from celery_etcdlock.tasks.entry.coroutines import may_be_awaited
from celery_etcdlock.tasks.entry.seam import has_own_call, is_async_task, written_run

logger = logging.getLogger("celery_etcdlock")

#: Keywords that Celery's own decorators take without being attributes of a task.
CELERY_KEYWORDS = frozenset(
    {
        *("base", "bind", "filter", "lazy", "name", "shared"),
        *("pydantic", "pydantic_context", "pydantic_dump_kwargs", "pydantic_strict"),
        *("autoretry_for", "dont_autoretry_for", "max_retries", "retry_kwargs"),
        *("retry_backoff", "retry_backoff_max", "retry_jitter"),
        *("compression", "delivery_mode", "exchange", "exchange_type", "expires", "immediate", "mandatory", "priority"),
        *("queue", "routing_key", "serializer", "shadow_name", "soft_time_limit", "time_limit"),
        *(attribute for attribute, _ in Task.from_config),
    }
)

#: What other packages call theirs, whose it is, and what is written here instead.
FOREIGN = {
    "once": ("celery-once", "unique_on for its keys, on_conflict='skip' for graceful, lock_ttl for timeout"),
    "raise_on_duplicate": ("celery-singleton", "on_conflict='raise'"),
    "lock_expiry": ("celery-singleton", "lock_ttl, or pending_ttl for a queued call"),
    "heimdall": ("celery-heimdall", "lock='until_executed' and unique_on, or unique_for"),
}

#: Bases that were warned of leaving out the app's own task class.
_warned_of: WeakKeyDictionary[type, None] = WeakKeyDictionary()


class NotLockable(InvalidOption):
    """A task whose body can't be kept under its lock."""


def check_definition(task: type[Any], app: Celery) -> None:
    """Raises ``InvalidOption``; warns where the app's own task class is left out."""
    refuse_batches(task, str(task.name))
    if "_lock_plan" not in vars(task):  # bound for the first time: later others may have put attributes on it
        _refuse_unknown(task, app)
    _refuse_what_runs_later(task)
    _tell_of_left_out_class(task, app)


def refuse_batches(task: type[Any], name: str) -> None:
    """celery-batches acknowledges messages whatever becomes of their flush: without its lock it would lose them."""
    if any(each.__module__.split(".")[0] == "celery_batches" for each in task.__mro__):
        raise NotLockable(
            f"task {name!r}: a task of celery-batches can't be locked: its messages are acknowledged even if the "
            "flush fails, so a flush without the lock would lose them. Let the flush pass what it "
            "collected to a locked task: flush(requests) -> locked.delay([request.args for request in requests])"
        )


def why_not(name: str) -> str | None:
    """What is wrong with the option ``name``, if it is one that somebody takes for a lock's."""
    if name in FOREIGN:
        package, instead = FOREIGN[name]
        return f"{name!r} is an option of {package} and does nothing here: write {instead}"
    near = difflib.get_close_matches(name, OPTION_NAMES, n=1, cutoff=0.8)
    return unknown_option(name) if near and near[0] != name else None


def refuse_foreign_options(task: Any, options: Mapping[str, Any]) -> None:
    """Of one call, ``apply_async(...)``. Raises ``InvalidOption``."""
    for name in options:
        if name in (*FOREIGN, *OPTION_NAMES) and name not in (options.get("stamped_headers") or ()):
            why = why_not(name) or f"{name!r} is an option of the task, not of a call: write it on the task"
            raise InvalidOption(f"task {task.name!r}, apply_async: {why}")


def known_options(bases: Iterable[type]) -> frozenset[str]:
    """What may be written on a task with these bases."""
    return frozenset(CELERY_KEYWORDS.union(OPTION_NAMES, *(dir(base) for base in bases)))


def refuse_unknown(where: str, names: Iterable[str], known: frozenset[str], *, all_known: bool) -> None:
    """Refuse what somebody takes for a lock's option; if ``all_known``, whatever isn't. Raises ``InvalidOption``."""
    for name in names:
        if name not in known:
            why = why_not(name)
            if why is None and all_known:
                why = f"{unknown_option(name, known)}; an attribute of your own goes on a base class"
            if why is not None:
                raise InvalidOption(f"{where}: {why}")


def _refuse_unknown(task: type[Any], app: Celery) -> None:
    where, known = f"task {task.name!r}", known_options(task.__mro__[1:]) | {"app"}
    refuse_unknown(where, _public(task), known, all_known=False)
    if "_decorated" in vars(task):
        annotated = {name for each in resolve_all(app.annotations, task) for name in each}
        refuse_unknown(where, _public(task), known | annotated, all_known=True)
    for each in task.__mro__[1:]:
        if hasattr(each, "_etcdlock_run") and not each.__module__.startswith("celery_etcdlock."):
            known = known_options(each.__mro__[1:])
            refuse_unknown(f"{where}, its base {each.__name__}", _public(each), known, all_known=False)


def _public(made: type[Any]) -> list[str]:
    return [name for name in vars(made) if not name.startswith("_")]


def _refuse_what_runs_later(task: type[Any]) -> None:
    """A body that runs only when somebody awaits it or iterates over it would run after the lock's release."""
    run, _ = written_run(task)
    if has_own_call(task):
        return  # which may see to it; that it does is checked at each call
    if inspect.isgeneratorfunction(run) or inspect.isasyncgenfunction(run):
        raise NotLockable(
            f"task {task.name!r}: its body has a yield, so it would run only after its lock is released: "
            "return a list instead"
        )
    if is_async_task(task) and not may_be_awaited():
        raise NotLockable(
            f"task {task.name!r}: its body is an async def, and Celery's own pools don't await it: install "
            "celery-aio-pool and use its pool, or call asyncio.run() in a plain body or in the __call__ of a base class"
        )


def expected_errors(throws: Any) -> tuple[type[Exception], ...]:
    """A task's ``throws``, with the conflict that was asked for (``on_conflict="raise"``): one line in the log."""
    given = tuple(throws) if isinstance(throws, tuple | list | set | frozenset) else (throws,)
    return given if LockConflict in given else (*given, LockConflict)


def _tell_of_left_out_class(task: type[Any], app: Celery) -> None:
    theirs: type = app.Task
    classes = theirs.__mro__[1:] if "_app" in vars(theirs) else theirs.__mro__
    missing = [each for each in classes if each not in task.__mro__]
    base = task.__mro__[1]
    if not missing or getattr(task, "_etcdlock_base_was_chosen", False) or base in _warned_of:
        return
    _warned_of[base] = None
    name = missing[0].__name__
    logger.warning(
        "celery-etcdlock: task %r has the base %s, which leaves out the app's own task class %s: use @singleton_task, "
        "which builds on it, or class %s(SingletonTask, %s)",
        task.name,
        base.__name__,
        name,
        f"Locked{name}",
        name,
    )
