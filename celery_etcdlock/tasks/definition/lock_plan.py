"""What is known about a locked task before it is called: its options, checked, and how its lock is named."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import Task

from celery_etcdlock.core.lock_names import LockNaming
from celery_etcdlock.core.policies import having
from celery_etcdlock.core.task_options import OPTIONS, TaskOptions
from celery_etcdlock.errors import InvalidOption
from celery_etcdlock.tasks.entry.seam import written_run


@dataclass(frozen=True)
class LockPlan:
    options: TaskOptions
    key: LockNaming


def is_built_in(task: type[Any]) -> bool:
    """Whether it is one of Celery's own, which are of the app's task class too: a lock would break chords."""
    return task.__module__ == "celery.app.builtins"


def plan_of(task: type[Task[Any, Any]]) -> LockPlan:
    """The plan of a task class. Raises ``InvalidOption``."""
    attributes = {} if is_built_in(task) else {option.name: _attribute(task, option.name) for option in OPTIONS}
    function, takes_task = written_run(task)
    attributes["ignore_result"] = task.ignore_result
    return plan_from_function(str(task.name), function, attributes, bind=takes_task)


def plan_from_function(
    task_name: str, function: Callable[..., Any], attributes: dict[str, Any], *, bind: bool
) -> LockPlan:
    """The plan of a task with these attributes, made from ``function``. Raises ``InvalidOption``.

    ``bind``: its first argument is the task.
    """
    options = TaskOptions.from_attributes(task_name, attributes)
    joins = having(options.policies.names, lambda facts: facts.needs_result)
    if joins and attributes.get("ignore_result"):
        raise InvalidOption(
            f"task {task_name!r}: on_conflict={joins[0]!r} needs the holder's result, but ignore_result is set: "
            "leave one out"
        )
    signature = _signature(inspect.signature(function), leave_out_self=bind)
    # Celery doesn't look through a decorator.
    checked = _signature(inspect.signature(function, follow_wrapped=False), leave_out_self=bind)
    key = LockNaming(task_name, signature, unique_on=options.unique_on, lock_key=options.lock_key, checked=checked)
    return LockPlan(options, key)


def _signature(signature: inspect.Signature, *, leave_out_self: bool) -> inspect.Signature:
    parameters = list(signature.parameters.values())
    first = parameters[0].kind if parameters else None
    if not leave_out_self or first not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        return signature  # or the task is the first of *args
    return signature.replace(parameters=parameters[1:])


def _attribute(task: type[Task[Any, Any]], name: str) -> Any:
    """The option as it was written: a function given as ``lock_key`` must not turn into a method."""
    value = inspect.getattr_static(task, name)
    if isinstance(value, staticmethod):
        return value.__func__
    if inspect.isfunction(value) and next(iter(inspect.signature(value).parameters), None) == "self":
        return functools.partial(value, task)
    return value
