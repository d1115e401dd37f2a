"""The seam between whatever runs a task and its body: no call reaches the body without its lock.

A call reaches the body through the class's ``__call__``, through ``run``, or through both, with any order of bases and
any instrumentation around either. So both are guarded: the outermost ``__call__`` of the task's class, and each ``run``
where it is defined. The first that a call reaches takes the lock, and the others let the call through
(``tasks.entry.call_path``). So what a user's ``__call__`` does around the body is under the lock too, and one that
calls ``run`` directly doesn't bypass it.

``guard`` is applied when a subclass is made and again when the task is bound, since annotations and metaclasses may
have changed the class in between. A call that returns a coroutine is awaited with the lock held
(``tasks.entry.coroutines``).

*Automatic retries* are Celery's wrapper of ``run``, inside of the lock, so that a retry keeps it. What the lock itself
raises is raised again inside of that wrapper, in the body's place. So ``autoretry_for`` covers our errors too.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

from celery import Task

from celery_etcdlock.errors import LockConflict, LockUnavailable
from celery_etcdlock.tasks.entry.call_path import CallPath, InBody, innermost
from celery_etcdlock.tasks.entry.caller import entering_request
from celery_etcdlock.tasks.entry.coroutines import awaited_in_body, finished, locked_coroutine

#: What a body is run in.
Way = contextlib.AbstractContextManager[None]

#: On a guarded ``__call__``: the user's own that it calls next; ``None`` for ours.
CALLS_NEXT = "_etcdlock_calls_next"
#: On an instance: its ``run``s, bound and guarded, by where they are defined.
BOUND = "_etcdlock_bound_runs"


def enter(task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], go_on: Callable[[], Any]) -> Any:
    """``task.__call__``: take the lock and go on, or only go on where this very call holds it."""
    make_ready(task)
    call_path = innermost()
    request = entering_request(task)
    if call_path is not None and request is None and call_path.task is task and not call_path.in_body:
        return go_on()
    if request is None and task._etcdlock_is_async and not has_own_call(type(task)):
        return locked_coroutine(functools.partial(_lock, task, None, args, kwargs), go_on)
    return _lock(task, request, args, kwargs, functools.partial(finished, task, go_on))


def reach_body(
    task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], body: Callable[[], Any], run: GuardedRun
) -> Any:
    """``task.run``: go on to the body, through the lock where nobody took it."""
    way = _way_to_body(task, args, kwargs, run)
    if way is None:
        go_on = functools.partial(finished, task, functools.partial(_run, None, body))
        return _lock(task, entering_request(task), args, kwargs, go_on)
    return _run(way, body)


async def reach_async_body(
    task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], body: Callable[[], Any], run: GuardedRun
) -> Any:
    """The same for an ``async def``, where it is awaited."""
    way = _way_to_body(task, args, kwargs, run)
    if way is None:
        lock = functools.partial(_lock, task, entering_request(task), args, kwargs)
        return await locked_coroutine(lock, functools.partial(_run_async, None, body))
    return await _run_async(way, body)


def _way_to_body(task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: GuardedRun) -> Way | None:
    """What the body is run in, where this very call holds the lock; ``None`` where the lock must be taken first."""
    make_ready(task)
    call_path = innermost()
    if call_path is None or call_path.task is not task or entering_request(task) is not None:
        return None
    if not call_path.in_body:
        if call_path.refusal is not None:
            raise call_path.refusal
        return InBody(call_path)
    by_super = run is not run_of(type(task))
    same_lock = by_super or call_path.names() == task._lock_names(args, kwargs)
    return contextlib.nullcontext() if same_lock else None


def make_ready(task: Any) -> None:
    """A class may be used before it is registered, or be derived from one that was."""
    if "_lock_plan" not in vars(type(task)):
        type(task)._etcdlock_prepare(task.app)


def _lock(task: Any, request: Any, args: tuple[Any, ...], kwargs: dict[str, Any], go_on: Callable[[], Any]) -> Any:
    names = functools.cache(lambda: task._lock_names(args, kwargs))
    call_path = CallPath(task, getattr(request, "id", None), names)

    def through() -> Any:
        with call_path:
            return go_on()

    try:
        try:
            return task._etcdlock_run(request, names, through)
        except (LockConflict, LockUnavailable) as error:
            if call_path.began or "_orig_run" not in vars(task):
                raise
            call_path.refusal = error
            with call_path:
                return task.run(*args, **kwargs)
    finally:
        # Again: a signal may have struck where it is closed, and no other call may pass through it.
        call_path.is_over = True


def _run(way: Way | None, body: Callable[[], Any]) -> Any:
    """``way``: ``None`` where the lock was taken only now."""
    with way or InBody(innermost()):
        result = body()
    return awaited_in_body(result)


async def _run_async(way: Way | None, body: Callable[[], Any]) -> Any:
    with way or InBody(innermost()):
        return await body()


class GuardedRun:
    """``run`` in a class's namespace: what was there, with the lock in front of it."""

    def __init__(self, defined: Any) -> None:
        self.defined = defined

    def __get__(self, task: Any, owner: type | None = None) -> Any:
        if task is None:
            return self._of_class(owner)
        bound = vars(task).setdefault(BOUND, {})
        run = bound.get(self)
        if run is None:
            run = bound[self] = self.guarded(lambda args: (task, args), self._bound(task, type(task)))
        return run

    def _bound(self, task: Any, owner: type | None) -> Any:
        bind = getattr(type(self.defined), "__get__", None)
        return self.defined if bind is None else bind(self.defined, task, owner)

    def _of_class(self, owner: type | None) -> Any:
        """``Task.run(task, ...)``, as a method that calls that of its base by name does."""
        run = self._bound(None, owner)
        if not inspect.isfunction(self.defined):
            return run
        return self.guarded(lambda args: (args[0] if args else None, args[1:]), run)

    def guarded(self, split: Callable[[tuple[Any, ...]], tuple[Any, tuple[Any, ...]]], run: Any) -> Any:
        reach = reach_async_body if is_async(run) else reach_body

        def guard(*args: Any, **kwargs: Any) -> Any:
            task, rest = split(args)
            if not hasattr(task, "_etcdlock_run"):
                return run(*args, **kwargs)
            return reach(task, rest, kwargs, functools.partial(run, *args, **kwargs), self)

        async def async_guard(*args: Any, **kwargs: Any) -> Any:
            return await guard(*args, **kwargs)

        return _looks_like(async_guard if is_async(run) else guard, run)


def _looks_like(guarded: Any, original: Any) -> Any:
    """As ``functools.wraps``, but with nothing that leads around the guard (Celery's annotations follow it)."""
    functools.update_wrapper(guarded, original, updated=())
    del guarded.__wrapped__
    with contextlib.suppress(TypeError, ValueError):
        guarded.__signature__ = inspect.signature(original)
    return guarded


def is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def is_async_task(task: type) -> bool:
    return is_async(written_run(task)[0])


def run_of(task: type) -> Any:
    return inspect.getattr_static(task, "run", None)


def written_run(task: type) -> tuple[Any, bool]:
    """The function that was written as ``run``, and whether the task is its first argument."""
    run = run_of(task)
    defined = run.defined if isinstance(run, GuardedRun) else run
    if isinstance(defined, staticmethod):
        return defined.__func__, False
    return (defined.__func__ if isinstance(defined, classmethod) else defined), True


def guarded_call(calls_next: Any) -> Any:
    """A guarded ``__call__``, which goes on to a user's own."""

    def __call__(self: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        return enter(self, args, kwargs, functools.partial(calls_next, self, *args, **kwargs))

    setattr(__call__, CALLS_NEXT, calls_next)
    return _looks_like(__call__, calls_next)


def has_own_call(task: type) -> bool:
    """Whether a user's ``__call__`` comes before the body: it may await what the body returns."""
    for each in task.__mro__:
        call = vars(each).get("__call__")
        if call is None:
            continue
        if not hasattr(call, CALLS_NEXT):
            return each is not Task
        if getattr(call, CALLS_NEXT) is not None:
            return True
    return False


def guard(task: type) -> None:
    run = run_of(task)
    if run is not None and not isinstance(run, GuardedRun) and run is not vars(Task)["run"]:
        task.run = GuardedRun(run)  # type: ignore[attr-defined]
    call = inspect.getattr_static(task, "__call__")
    if not hasattr(call, CALLS_NEXT):
        task.__call__ = guarded_call(call)  # type: ignore[method-assign]


def guard_instance(task: Any) -> None:
    """The same for an instance made before its class was guarded: Celery or somebody else may have kept its run."""
    name = "_orig_run" if "_orig_run" in vars(task) else "run"
    kept, run = vars(task).get(name), run_of(type(task))
    if kept is not None and isinstance(run, GuardedRun):
        setattr(task, name, run.guarded(lambda args: (task, args), kept))
