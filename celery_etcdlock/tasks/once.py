"""A task whose every message runs once: a lock on the message's id, and a mark when it has come to its end.

For tasks that know nothing of locks (``etcdlock_dedup = "task_id"``). The body runs unlocked where there is no message:
called as a function, or applied eagerly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

from celery_etcdlock.tasks.call import is_entered_by_worker
from celery_etcdlock.tasks.execution import run_locked
from celery_etcdlock.tasks.run import MESSAGE_PREFIX
from celery_etcdlock.tasks.task import SingletonTask
from celery_etcdlock.tasks.task_lock import by_message

__all__ = ["OncePerMessage"]

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class OncePerMessage(SingletonTask[P, R]):
    """See the module. A retry is another message of the same task: it waits for its predecessor's end, and runs."""

    abstract = True

    def lock_for(self, *args: P.args, **kwargs: P.kwargs) -> NoReturn:
        raise by_message(str(self.name))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        body: Callable[[], Any] = functools.partial(super(SingletonTask, self).__call__, *args, **kwargs)
        if not is_entered_by_worker(self):
            return body()  # type: ignore[no-any-return]
        result: R = run_locked(self, self._lock_plan, lambda: (f"{MESSAGE_PREFIX}{self.request.id}",), body, once=True)
        return result
