"""A task whose every message runs once: a lock on the message's id, and a done mark when it has ended.

For tasks without locks (``etcdlock_dedup = "task_id"``). Called as a function or applied eagerly there is no message,
and the body runs unlocked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

from celery_etcdlock.tasks.execution.context import MESSAGE_PREFIX
from celery_etcdlock.tasks.execution.run_under_lock import run_under_lock
from celery_etcdlock.tasks.singleton_task import SingletonTask
from celery_etcdlock.tasks.task_lock import by_message

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class OncePerMessage(SingletonTask[P, R]):
    """See the module. A retry is another message of the same task: it waits for its predecessor's end, and runs."""

    abstract = True

    def lock_for(self, *args: P.args, **kwargs: P.kwargs) -> NoReturn:
        raise by_message(str(self.name))

    def _etcdlock_run(self, request: Any, names: Callable[[], tuple[str, ...]], body: Callable[[], Any]) -> Any:
        if request is None or request.is_eager:
            return body()
        return run_under_lock(self, request, lambda: (f"{MESSAGE_PREFIX}{request.id}",), body, once=True)
