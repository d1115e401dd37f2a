"""The last check that a body had its lock: before a worker stores a message's result as a success.

The seam (``tasks.entry.seam``) ensures it. If something bypasses the seam, say by replacing both ``__call__`` and
``run`` once the task is bound, then that delivery never asked for its lock, and its request shows it. Its success is
refused: Celery makes an internal error of that, a failure in the result and the log.
"""

from __future__ import annotations

from typing import Any, NoReturn

from celery_etcdlock.errors import EtcdLockError
from celery_etcdlock.tasks.definition.lock_plan import is_built_in
from celery_etcdlock.tasks.entry.caller import entered


def checked_backend(task: Any, backend: Any) -> Any:
    """``task``'s result backend, which refuses the success of a delivery that didn't ask for its lock."""
    stack = task.request_stack
    request = None if stack is None else stack.top
    if request is None or request.called_directly or request.id is None or request.is_eager or entered(request):
        return backend
    return backend if is_built_in(type(task)) else _NoSuccess(backend, task)


class _NoSuccess:
    def __init__(self, backend: Any, task: Any) -> None:
        self._backend = backend
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def mark_as_done(self, task_id: str, *_: Any, **__: Any) -> NoReturn:
        raise EtcdLockError(
            f"task {self._task.name!r}: its body ran WITHOUT ITS LOCK for message {task_id}: something that was set up "
            "after the task was bound calls the body without the task's __call__ and run"
        )
