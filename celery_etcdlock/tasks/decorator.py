"""``@singleton_task``: a locked task in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast, overload

from celery import Celery, Task, shared_task

from celery_etcdlock.core.options import OPTION_NAMES, check_option_names
from celery_etcdlock.tasks.plan import plan_from_function
from celery_etcdlock.tasks.task import SingletonTask

__all__ = ["singleton_task"]

P = ParamSpec("P")
R = TypeVar("R")

#: Keywords that Celery's own decorators take without being attributes of a task.
CELERY_KEYWORDS = frozenset(
    {
        *("base", "bind", "lazy", "name", "shared"),
        *("pydantic", "pydantic_context", "pydantic_dump_kwargs", "pydantic_strict"),
        *("autoretry_for", "dont_autoretry_for", "max_retries", "retry_kwargs"),
        *("retry_backoff", "retry_backoff_max", "retry_jitter"),
        *("compression", "delivery_mode", "exchange", "expires", "immediate", "mandatory", "priority", "queue"),
        *("routing_key", "serializer", "shadow_name", "soft_time_limit", "time_limit"),
    }
)


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
    ``celery.shared_task`` makes. A ``base`` of your own is combined with ``SingletonTask``.

    Raises ``InvalidOption`` at once when an option is unknown, wrong, or doesn't fit the function's arguments.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        name = options.get("name") or f"{function.__module__}.{function.__qualname__}"
        check_option_names(options, {*CELERY_KEYWORDS, *dir(Task)}, task_name=name)
        base_options = {option: getattr(base, option) for option in OPTION_NAMES if hasattr(base, option)}
        plan_from_function(name, function, base_options | options, bind=bind)
        task_base = _with_singleton(base)
        if app is not None:
            return app.task(base=task_base, bind=bind, **options)(function)
        return shared_task(base=task_base, bind=bind, **options)(function)

    return decorate if fun is None else decorate(fun)


def _with_singleton(base: type[Task[Any, Any]] | None) -> type[SingletonTask[Any, Any]]:
    if base is None:
        return SingletonTask
    if issubclass(base, SingletonTask):
        return base
    return cast(
        "type[SingletonTask[Any, Any]]",
        type(f"Singleton{base.__name__}", (SingletonTask, base), {"abstract": True, "__module__": base.__module__}),
    )
