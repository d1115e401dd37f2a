"""``SingletonTask``: a Celery task whose body runs under a lock."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeVar

from celery import Celery, Task, states
from celery.exceptions import TaskRevokedError
from celery.result import EagerResult

from celery_etcdlock.core.options import OPTIONS
from celery_etcdlock.errors import LockConflict
from celery_etcdlock.tasks.execution import run_locked
from celery_etcdlock.tasks.plan import LockPlan, plan_of
from celery_etcdlock.tasks.runtime import EtcdLocks
from celery_etcdlock.tasks.turned_away import Skipped

__all__ = ["SingletonTask"]

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

if TYPE_CHECKING:
    from celery.result import AsyncResult

    class _TypedTask(Task[P, R], Generic[P, R]):
        # Said here too, so that they are known where celery-types isn't installed.
        def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]: ...

else:
    _TypedTask = Task


#: Named, not imported: the worker's side is of no use to a producer.
WORKER_STEPS = (
    "celery_etcdlock.worker.bootstep:CheckSettings",
    "celery_etcdlock.worker.cleanup:LookAfterChildren",
    "celery_etcdlock.worker.control:KeepFigures",
)


class SingletonTask(_TypedTask[P, R]):
    """A task that runs at most once at a time, per name or per arguments.

    Use it as ``@singleton_task``, as ``@app.task(base=SingletonTask, ...)`` or as a base class. The options are class
    attributes (``celery_etcdlock.core.options.OPTIONS`` lists them with their meanings and defaults), so a decorator's
    keywords, a subclass and ``task_annotations`` all set them.

    The lock is taken before the body, in the process that runs it, and released in a ``finally``, before the result
    can be seen. What a loser gets is ``on_conflict``; what happens when etcd can't be asked is
    ``etcdlock_on_unavailable``.
    """

    abstract = True

    #: A conflict that was asked for (``on_conflict="raise"``) is no surprise: one line in the log, without a traceback.
    throws = (LockConflict,)

    _lock_plan: ClassVar[LockPlan]

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Check the options as soon as the task has an app. Raises ``InvalidOption``."""
        super().on_bound(app)
        cls._lock_plan = plan_of(cls)
        app.steps["worker"].update(WORKER_STEPS)

    @functools.cached_property
    def _lock_name(self) -> Callable[[tuple[Any, ...], dict[str, Any]], str]:
        settings = EtcdLocks.from_app(self.app).settings
        return self._lock_plan.key.with_hash_key(settings.hash_key).name_for

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        body: Callable[[], R] = functools.partial(super().__call__, *args, **kwargs)
        options = self._lock_plan.options
        return run_locked(self, options, self._lock_name(args, kwargs), body)

    def apply(self, *args: Any, **kwargs: Any) -> EagerResult[R]:
        """As Celery's, but a task that was skipped is REVOKED here as it is at a worker."""
        result: EagerResult[R] = super().apply(*args, **kwargs)
        why = result.result
        if isinstance(why, Skipped):
            revoked: Any = TaskRevokedError(str(why))
            return EagerResult(result.id, revoked, states.REVOKED, name=self.name)
        return result


for _option in OPTIONS:
    setattr(SingletonTask, _option.name, _option.default)
