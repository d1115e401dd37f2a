"""``@singleton_task``: a locked task in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from celery import Celery, Task, shared_task

from celery_etcdlock.core.task_options import OPTION_NAMES
from celery_etcdlock.tasks.definition.checks import known_options, refuse_batches, refuse_unknown
from celery_etcdlock.tasks.definition.lock_plan import plan_from_function
from celery_etcdlock.tasks.singleton_task import SingletonTask
from celery_etcdlock.tasks.task_classes import OfTheApp, in_front_of, known_class_of

P = ParamSpec("P")
R = TypeVar("R")


@overload
def singleton_task(fun: Callable[P, R], /) -> SingletonTask[P, R]: ...


@overload
def singleton_task(
    *, bind: Literal[True], app: Celery | None = None, **options: Any
) -> Callable[[Callable[Concatenate[Any, P], R]], SingletonTask[P, R]]: ...


@overload
def singleton_task(
    *, bind: Literal[False] = False, app: Celery | None = None, **options: Any
) -> Callable[[Callable[P, R]], SingletonTask[P, R]]: ...


def singleton_task(
    fun: Callable[..., Any] | None = None,
    /,
    *,
    bind: bool = False,
    app: Celery | None = None,
    base: type[Task[Any, Any]] | None = None,
    **options: Any,
) -> Any:
    """Make a function a task that runs one at a time, per task name or per ``unique_on``.

    Bare or with options: those of ``SingletonTask`` and all of ``app.task``. Without ``app`` it is a shared task, as
    ``celery.shared_task`` makes. It is built on the app's own task class (``task_cls``, ``app.Task``); a ``base`` takes
    that one's place, as in Celery, and is combined with ``SingletonTask``.

    Raises ``InvalidOption``, at once or when the app makes the task, when an option is unknown, wrong, or doesn't fit
    the function's arguments.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        name = options.get("name") or f"{function.__module__}.{function.__qualname__}"
        own = base or known_class_of(app)
        # Celery would take them in silence. What may be the app's own class's is left to when that is known.
        known = known_options([Task, SingletonTask, *([] if own is None else [own])])
        refuse_unknown(f"task {name!r}", options, known, all_known=own is not None)
        if own is not None:
            refuse_batches(own, name)
        inherited = {option: getattr(own, option) for option in OPTION_NAMES if hasattr(own, option)}
        plan_from_function(name, function, inherited | options, bind=bind)
        task_base: Any = OfTheApp if base is None else in_front_of(base, _etcdlock_base_was_chosen=True)
        if app is not None:
            return app.task(base=task_base, bind=bind, **options)(function)
        return shared_task(base=task_base, bind=bind, **options)(function)

    return decorate if fun is None else decorate(fun)
