"""What is known about a locked task before it is called: its options, checked, and how its lock is named."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import Task

from celery_etcdlock.core.keys import KeySpec
from celery_etcdlock.core.options import OPTION_NAMES, OPTIONS, TaskOptions
from celery_etcdlock.errors import InvalidOption

__all__ = ["LockPlan", "plan_from_function", "plan_of"]


@dataclass(frozen=True)
class LockPlan:
    """A task's options and key."""

    options: TaskOptions
    key: KeySpec


def plan_from_function(
    task_name: str, function: Callable[..., Any], options: dict[str, Any], *, bind: bool
) -> LockPlan:
    """The plan of a task that is about to be made from ``function``. Raises ``InvalidOption``."""
    _check_join(task_name, options.get("on_conflict"), ignore_result=bool(options.get("ignore_result")))
    return _plan(task_name, _signature(function, leave_out_self=bind), options)


def plan_of(task: type[Task[Any, Any]]) -> LockPlan:
    """The plan of a task class. Raises ``InvalidOption``."""
    _refuse_near_misses(task)
    attributes = {option.name: _attribute(task, option.name) for option in OPTIONS}
    _check_join(str(task.name), attributes["on_conflict"], ignore_result=bool(task.ignore_result))
    run = inspect.getattr_static(task, "run")
    is_static = isinstance(run, staticmethod)
    function = run.__func__ if isinstance(run, staticmethod | classmethod) else run
    return _plan(str(task.name), _signature(function, leave_out_self=not is_static), attributes)


def _plan(task_name: str, signature: inspect.Signature, attributes: dict[str, Any]) -> LockPlan:
    options = TaskOptions.from_attributes(task_name, attributes)
    return LockPlan(options, KeySpec(task_name, signature, unique_on=options.unique_on, lock_key=options.lock_key))


def _check_join(task_name: str, on_conflict: object, *, ignore_result: bool) -> None:
    chosen = on_conflict.values() if isinstance(on_conflict, dict) else [on_conflict]
    if "join" in chosen and ignore_result:
        raise InvalidOption(
            f"task {task_name!r}: on_conflict='join' takes on the holder's result, but ignore_result is set: leave "
            "one out"
        )


def _signature(function: Callable[..., Any], *, leave_out_self: bool) -> inspect.Signature:
    signature = inspect.signature(function)
    if leave_out_self:
        parameters = list(signature.parameters.values())
        return signature.replace(parameters=parameters[1:])
    return signature


def _attribute(task: type[Task[Any, Any]], name: str) -> Any:
    """The option as it was written: a function given as ``lock_key`` must not turn into a method."""
    value = inspect.getattr_static(task, name)
    if isinstance(value, staticmethod):
        return value.__func__
    if inspect.isfunction(value) and next(iter(inspect.signature(value).parameters), None) == "self":
        return functools.partial(value, task)
    return value


def _refuse_near_misses(task: type[Task[Any, Any]]) -> None:
    """Celery takes any keyword of ``app.task`` for an attribute, so a slip of the pen would mean no option at all."""
    known = {*dir(Task), *OPTION_NAMES}  # not hasattr: Task.app would bind Task itself
    for name in vars(task):
        if not name.startswith("_") and name not in known:
            near = difflib.get_close_matches(name, OPTION_NAMES, n=1, cutoff=0.8)
            if near:
                raise InvalidOption(
                    f"task {task.name!r}: unknown option {name!r}; did you mean {near[0]!r}? "
                    f"celery-etcdlock's options are {', '.join(OPTION_NAMES)}"
                )
