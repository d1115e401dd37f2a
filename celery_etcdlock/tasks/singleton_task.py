"""``SingletonTask``: a Celery task whose body runs under a lock."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeVar

from celery import Celery, Task, states
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult, EagerResult
from celery.utils import uuid

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.core.task_options import OPTIONS
from celery_etcdlock.errors import EtcdLockError
from celery_etcdlock.interruptions import interrupts
from celery_etcdlock.tasks.definition.checks import check_definition, expected_errors, refuse_foreign_options
from celery_etcdlock.tasks.definition.lock_plan import LockPlan, is_built_in, plan_of
from celery_etcdlock.tasks.definition.scope import scoped
from celery_etcdlock.tasks.entry.caller import request_here
from celery_etcdlock.tasks.entry.seam import CALLS_NEXT, enter, guard, is_async_task, make_ready
from celery_etcdlock.tasks.execution.ended_before_lock import free_at_the_end
from celery_etcdlock.tasks.execution.release_or_hand_over import REPLACEMENT
from celery_etcdlock.tasks.execution.run_under_lock import run_under_lock
from celery_etcdlock.tasks.execution.skip_or_reschedule import Skipped
from celery_etcdlock.tasks.message.headers import arguments_shown_in
from celery_etcdlock.tasks.producer.publish import Enqueued, with_call
from celery_etcdlock.tasks.producer.publish_group import take_together
from celery_etcdlock.tasks.success_check import checked_backend
from celery_etcdlock.tasks.task_lock import TaskLock

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

if TYPE_CHECKING:

    class _TypedTask(Task[P, R], Generic[P, R]):
        # Said here too, so that they are known where celery-types isn't installed.
        def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]: ...

else:

    class _TypedTask(Task):
        """Takes the parameters that Celery's own class takes only from 5.5 on."""

        abstract = True

        def __class_getitem__(cls, parameters: Any) -> type:
            return cls


#: Named, not imported: the worker's side is of no use to a producer.
WORKER_STEPS = (
    "celery_etcdlock.worker.check_settings:CheckSettings",
    "celery_etcdlock.worker.dead_children:LookAfterChildren",
    "celery_etcdlock.worker.inspect_commands:PoolMemory",
    "celery_etcdlock.worker.free_never_started:FreeNeverStarted",
    "celery_etcdlock.worker.apply_dedup:ApplyDedup",
    "celery_etcdlock.worker.option_mismatch:CompareOptions",
)
CONSUMER_STEPS = (
    "celery_etcdlock.worker.gate:Gate",
    "celery_etcdlock.worker.watch_unstarted:WatchUnstarted",
    "celery_etcdlock.worker.count_waiting:CountWaiting",
    "celery_etcdlock.worker.name_joined:NameJoined",
)


class SingletonTask(_TypedTask[P, R]):
    """A task that runs at most once at a time, per name or per arguments.

    Use it as ``@singleton_task``, as ``@app.task(base=SingletonTask, ...)`` or as a base class. The options are class
    attributes (``celery_etcdlock.core.task_options.OPTIONS`` lists them with their meanings and defaults), so a
    decorator's keywords, a subclass and ``task_annotations`` all set them.

    The lock is taken before the body, in the process that runs it, and released in a ``finally``, before the result
    can be seen (``tasks.entry.seam``). What a loser gets is ``on_conflict``; what happens when etcd can't be asked is
    ``etcdlock_on_unavailable``.
    """

    abstract = True

    _lock_plan: ClassVar[LockPlan]
    _etcdlock_is_async: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        guard(cls)

    @classmethod
    def bind(cls, app: Celery) -> Any:
        """As Celery's, and check the options as soon as the task has an app. Raises ``InvalidOption``."""
        bound = super().bind(app)
        cls._etcdlock_prepare(app)
        return bound

    @classmethod
    def _etcdlock_prepare(cls, app: Celery) -> None:
        """Guard the class as it is now, and check it. Raises ``InvalidOption``."""
        guard(cls)
        check_definition(cls, app)
        cls._etcdlock_is_async = is_async_task(cls)
        cls.throws = expected_errors(cls.throws)
        cls._lock_plan = plan_of(cls)
        free_at_the_end()
        app.steps["worker"].update(WORKER_STEPS)
        app.steps["consumer"].update(CONSUMER_STEPS)
        if cls._lock_plan.options.lifetime.at_enqueue:
            take_together()

    def _lock_names(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        headers: Mapping[str, Any] | None = None,
        shown: Any = None,
    ) -> tuple[str, ...]:
        """Of the locks of a call. ``headers``: those of its message, if they aren't those of what runs here.

        ``shown``: what has the ``argsrepr`` and ``kwargsrepr`` of the call, by default the request here.
        """
        scope = EtcdLocks.from_app(self.app).settings.scope
        dump = getattr(self, "_dump_pydantic_arguments", None)
        if dump is not None:
            args, kwargs = dump(args, kwargs)
        try:
            names = self._lock_key(args, kwargs, arguments_shown_in(request_here(self) if shown is None else shown))
            if scope is None:
                return names
            return scoped(
                scope, names, getattr(request_here(self), "headers", None) or {} if headers is None else headers
            )
        except EtcdLockError as error:
            if error.__cause__ is not None and interrupts(error.__cause__):
                raise error.__cause__ from None  # the user's function was interrupted, it didn't fail
            raise

    @functools.cached_property
    def _lock_key(self) -> Callable[..., tuple[str, ...]]:
        settings = EtcdLocks.from_app(self.app).settings
        return self._lock_plan.key.with_hash_key(settings.hash_key).names_for

    def _etcdlock_run(self, request: Any, names: Callable[[], tuple[str, ...]], body: Callable[[], Any]) -> Any:
        """``request``: of the delivery that enters, ``None`` where it is called as a function."""
        return body() if is_built_in(type(self)) else run_under_lock(self, request, names, body)

    def lock_for(self, *args: P.args, **kwargs: P.kwargs) -> TaskLock:
        """The lock that a call with these arguments takes: who holds it, release it, hold it yourself.

        Raises ``TypeError`` for arguments that the task doesn't take, ``InvalidKey`` for those that make no key.
        """
        return TaskLock(EtcdLocks.from_app(self.app), self._lock_names(args, kwargs), self._lock_plan.options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = enter(self, args, kwargs, functools.partial(super().__call__, *args, **kwargs))
        return result

    setattr(__call__, CALLS_NEXT, None)

    @property
    def backend(self) -> Any:
        """As Celery's."""
        return checked_backend(self, super().backend)

    @backend.setter
    def backend(self, value: Any) -> None:
        self._backend = value

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """As Celery's. Takes the lock first, where its lifetime begins with the call (``tasks.producer.publish``)."""
        call = super().apply_async

        def send(task_id: str | None, headers: Any) -> AsyncResult[R]:
            options["headers"] = headers
            return call(args, kwargs, task_id, producer, link, link_error, shadow, **options)

        make_ready(self)
        refuse_foreign_options(self, options)
        if self.app.conf.task_always_eager:
            return call(args, kwargs, task_id, producer, link, link_error, shadow, **options)
        if not self._lock_plan.options.lifetime.at_enqueue:
            task_id = task_id or uuid()
            return send(task_id, with_call(options.get("headers"), task_id))
        if self.typing:
            check: Any = self.__header__  # type: ignore[attr-defined]
            check(*(args or ()), **(kwargs or {}))  # Celery's own check, before there is a lock
        every_option = self._get_exec_options() | options | {"link": link, "link_error": link_error}  # type: ignore[attr-defined]
        return Enqueued(self, task_id, every_option).publish(tuple(args or ()), kwargs or {}, send)

    def replace(self, sig: Any) -> Any:
        """As Celery's. A lock that is held until the task has been executed goes to the task that replaces it."""
        setattr(self.request, REPLACEMENT, sig)
        return super().replace(sig)

    def apply(self, *args: Any, **kwargs: Any) -> EagerResult[R]:
        """As Celery's, but a task that was skipped is REVOKED here as it is at a worker."""
        result: EagerResult[R] = super().apply(*args, **kwargs)
        why = result.result
        if isinstance(why, Skipped):
            revoked: Any = TaskRevokedError(str(why))
            return EagerResult(result.id, revoked, states.REVOKED, name=self.name)
        return result


def locked_tasks(app: Celery) -> list[SingletonTask[Any, Any]]:
    return [task for task in app.tasks.values() if isinstance(task, SingletonTask)]


for _option in OPTIONS:
    setattr(SingletonTask, _option.name, _option.default)
