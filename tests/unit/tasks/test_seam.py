"""No body runs without its lock, whatever class the task is of and whatever way leads to it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, _state
from celery.app import trace

from celery_etcdlock import (
    InvalidOption,
    LockConflict,
    LockUnavailable,
    SingletonTask,
    current_lock,
    singleton_task,
)
from celery_etcdlock.core.dedup_rules import check_dedup
from celery_etcdlock.testing import hold
from celery_etcdlock.worker.apply_dedup import deduplicate
from tests.unit.tasks.lab import Lab, messages, run_message

_numbers = itertools.count()

#: What a user's own ``__call__`` does with the task.
CALLS: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "self.run": lambda self, *args, **kwargs: self.run(*args, **kwargs),
    "Task.__call__": lambda self, *args, **kwargs: Task.__call__(self, *args, **kwargs),
    "type(self).run": lambda self, *args, **kwargs: getattr(self, "_orig_run", self.run)(*args, **kwargs),
}


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.delenv("ETCDLOCK_ENDPOINTS", raising=False)
    lab = Lab()
    yield lab
    lab.close()


def with_call(call: str, base: type = Task) -> Any:
    """A base class as a framework has it: with ``__call__``, ``super().__call__`` too."""
    namespace: dict[str, Any] = {"abstract": True}
    if call == "super":

        class Calls(base):  # type: ignore[misc]
            abstract = True

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return super().__call__(*args, **kwargs)

        return Calls
    if CALLS[call] is not None:
        namespace["__call__"] = CALLS[call]
    return type("Theirs", (base,), namespace)


# --- how a task comes to be -------------------------------------------------------------------------------------------


def over_ours(lab: Lab, call: str, options: dict[str, Any]) -> Any:
    return lab.app.task(base=with_call(call, SingletonTask), name="task", shared=False, **options)(lab.body)


def before_ours(lab: Lab, call: str, options: dict[str, Any]) -> Any:
    both = type("Both", (with_call(call), SingletonTask), {"abstract": True})
    return lab.app.task(base=both, name="task", shared=False, bind=True, **options)(lab.bound_body)


def behind_ours(lab: Lab, call: str, options: dict[str, Any]) -> Any:
    return singleton_task(app=lab.app, base=with_call(call), name="task", shared=False, **options)(lab.body)


def of_the_app(lab: Lab, call: str, options: dict[str, Any]) -> Any:
    lab.app.Task = with_call(call)
    return singleton_task(app=lab.app, name="task", shared=False, **options)(lab.body)


def of_a_metaclass(lab: Lab, call: str, options: dict[str, Any]) -> Any:
    class Meta(type):
        """Puts its own run in the place of the class's, once the class is there."""

        def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
            super().__init__(name, bases, namespace)
            run = namespace.get("run")
            if run is not None:
                cls.run = staticmethod(lambda *args: run.__func__(*args))

    base = Meta("WithMeta", (with_call(call, SingletonTask),), {"abstract": True})
    return lab.app.task(base=base, name="task", shared=False, **options)(lab.body)


def of_classes_that_call_no_super(lab: Lab, call: str, options: dict[str, Any]) -> Any:
    class Rude:
        @classmethod
        def on_bound(cls, app: Celery) -> None: ...

        def __init_subclass__(cls) -> None: ...

    both = type("Both", (Rude, with_call(call), SingletonTask), {"abstract": True})
    return lab.app.task(base=both, name="task", shared=False, **options)(lab.body)


def of_class_and_subclass(lab: Lab, call: str, options: dict[str, Any]) -> Any:
    class First(with_call(call, SingletonTask)):  # type: ignore[misc]
        name = "first"

        def run(self, number: int = 0) -> int:
            return lab.body(number)

    class Second(First):
        name = "task"

        def run(self, number: int = 0) -> int:
            return super().run(number)  # type: ignore[no-any-return]

    for option, value in options.items():
        setattr(Second, option, value)
    lab.app.register_task(First())
    return lab.app.register_task(Second())


def of_a_body_beside_it(lab: Lab, call: str, options: dict[str, Any]) -> Any:
    class Body:
        def run(self, number: int = 0) -> int:
            return lab.body(number)

    made = type("Made", (Body, with_call(call), SingletonTask), {"name": "task", **options})
    return lab.app.register_task(made())


def annotated(lab: Lab, call: str, options: dict[str, Any]) -> Any:
    def around(run: Any) -> Any:
        return lambda *args, **kwargs: run(*args, **kwargs)

    lab.app.conf.task_annotations = {"task": {"@__call__": around, "@run": around}}
    base = with_call(call, SingletonTask)
    return lab.app.task(base=base, bind=True, name="task", shared=False, **options)(lab.bound_body)


def deduplicated(lab: Lab, call: str, options: dict[str, Any]) -> Any:
    autoretry = {name: options.pop(name) for name in list(options) if name == "autoretry_for"}
    lab.app.task(base=with_call(call), name="task", shared=False, **autoretry)(lab.body)
    deduplicate(lab.app, check_dedup({"task": options}))
    return lab.app.tasks["task"]


MAKERS = [
    over_ours,
    before_ours,
    behind_ours,
    of_the_app,
    of_a_metaclass,
    of_classes_that_call_no_super,
    of_class_and_subclass,
    of_a_body_beside_it,
    annotated,
    deduplicated,
]

# --- what leads to the body -------------------------------------------------------------------------------------------


def by_a_worker(lab: Lab, task: Any) -> None:
    result, message = lab.publish(task, 1)
    run_message(lab.app, message)
    result.get(timeout=5)


def by_a_tracer_that_calls_run(lab: Lab, task: Any) -> None:
    """As Celery's does for a task without a ``__call__`` of its own."""

    def build(name: str, task: Any, app: Celery) -> Any:
        before = trace.task_has_custom
        trace.task_has_custom = lambda task, name: name != "__call__" and before(task, name)
        try:
            return trace.build_tracer(name, task, app=app)
        finally:
            trace.task_has_custom = before

    result, message = lab.publish(task, 1)
    run_message(lab.app, message, build)
    result.get(timeout=5)


def patched_afterwards(lab: Lab, task: Any) -> None:
    """By an instrumentation that forgets what it replaces, but not the task's ``run``."""
    cls = type(task)
    before = cls.__call__
    cls.__call__ = lambda self, *args, **kwargs: self.run(*args, **kwargs)
    try:
        by_a_worker(lab, task)
    finally:
        cls.__call__ = before


def wrapped_afterwards(lab: Lab, task: Any) -> None:
    """As Sentry does it."""
    cls = type(task)
    before = cls.__call__
    cls.__call__ = functools.wraps(before)(lambda *args, **kwargs: before(*args, **kwargs))
    try:
        by_a_worker(lab, task)
    finally:
        cls.__call__ = before


def eagerly(lab: Lab, task: Any) -> None:
    task.apply((1,)).get()


def as_a_function(lab: Lab, task: Any) -> None:
    task(1)


def its_run(lab: Lab, task: Any) -> None:
    task.run(1)


def in_a_map(lab: Lab, task: Any) -> None:
    lab.app.finalize()
    lab.app.tasks["celery.map"](task.s(), [1])


def in_a_starmap(lab: Lab, task: Any) -> None:
    """Of which chunks are made."""
    lab.app.finalize()
    lab.app.tasks["celery.starmap"](task.s(), [(1,)])


WAYS = [
    by_a_worker,
    by_a_tracer_that_calls_run,
    patched_afterwards,
    wrapped_afterwards,
    eagerly,
    as_a_function,
    its_run,
    in_a_map,
    in_a_starmap,
]


@pytest.mark.parametrize("autoretry", [{}, {"autoretry_for": (ZeroDivisionError,)}], ids=["", "autoretry"])
@pytest.mark.parametrize("call", [*CALLS, "super"])
@pytest.mark.parametrize("make", MAKERS)
def test_every_way_to_the_body_leads_through_the_lock(
    lab: Lab, make: Callable[..., Any], call: str, autoretry: dict[str, Any]
) -> None:
    task = make(lab, call, {"lock_key": "name", "on_conflict": "raise", **autoretry})
    for way in WAYS:
        lab.bodies.clear()
        way(lab, task)
        assert lab.bodies == ["name"], way
        assert not lab.locks.holders("name"), way
        lab.bodies.clear()
        with lab.locks.lock("name"), pytest.raises(LockConflict):
            way(lab, task)
        assert lab.bodies == [], way


def test_what_gets_around_the_seam_is_no_success(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    @singleton_task(app=lab.app, shared=False, name="task")
    def task() -> str:
        return "ran"

    result, message = lab.publish(task)

    class Bare:
        """Has the body itself, and shows Celery's tracer nothing of the task's class."""

        def __getattr__(self, name: str) -> Any:
            return getattr(lab.app.tasks["task"], name)

        run = staticmethod(lambda: "ran")

    run_message(lab.app, message, lambda name, _, app: trace.build_tracer(name, Bare(), app=app))
    assert result.state == "FAILURE"
    assert "WITHOUT ITS LOCK" in str(result.result)


def test_a_body_that_calls_itself_makes_calls_of_their_own(lab: Lab) -> None:
    seen = []

    @singleton_task(app=lab.app, shared=False, unique_on=["number"])
    def task(number: int) -> None:
        seen.append(current_lock().name)
        if number:
            task(number - 1)
            task.run(number - 1)
            task.run(number)  # its own lock: no conflict with itself
        if number == 7:
            with pytest.raises(LockConflict):
                task(number)

    calls = []

    @singleton_task(app=lab.app, shared=False, unique_on=["number"])
    def once(number: int) -> None:
        calls.append(current_lock().name)
        if len(calls) == 1:
            once.run(number)
            once.run(number + 1)
            with pytest.raises(LockConflict):
                once(number)

    once(1)
    assert calls[0] == calls[1] != calls[2]


def test_the_function_itself_is_no_task(lab: Lab) -> None:
    task: Any = singleton_task(app=lab.app, shared=False, name="task")(lab.body)
    assert task.__wrapped__(3) == 3
    assert lab.bodies == ["UNLOCKED"]


def test_a_call_that_tries_twice_does_so_under_one_lock(lab: Lab) -> None:
    tokens = []

    class Twice(SingletonTask[Any, Any]):
        abstract = True

        def __call__(self, *args: Any) -> Any:
            try:
                return self.run(*args)
            except ZeroDivisionError:
                return self.run(*args)

    @lab.app.task(base=Twice, shared=False)
    def task() -> None:
        tokens.append(current_lock().fencing_token)
        if len(tokens) == 1:
            raise ZeroDivisionError

    task()
    assert len(tokens) == 2
    assert len(set(tokens)) == 1


class TestAutoretry:
    @pytest.mark.parametrize("named", [LockConflict, LockUnavailable, Exception])
    def test_it_means_what_the_lock_raises_too(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch, named: type[Exception]
    ) -> None:
        lab.app.conf.etcdlock_on_unavailable = "raise"
        task = singleton_task(
            app=lab.app,
            shared=False,
            name="task",
            lock_key="name",
            on_conflict="raise",
            autoretry_for=(named,),
            retry_backoff=False,
        )(lab.body)
        result, message = lab.publish(task)
        if named is LockUnavailable:
            monkeypatch.setattr(lab.locks.circuit_breaker, "check", _away)
            run_message(lab.app, message)
            monkeypatch.undo()
            lab.locks.circuit_breaker.over()
        else:
            with lab.locks.lock("name"):
                run_message(lab.app, message)
        assert result.state == "RETRY"
        [again] = messages(lab.app)
        assert again.headers["retries"] == 1
        assert lab.bodies == []
        run_message(lab.app, again)
        assert result.state == "SUCCESS"
        assert lab.bodies == ["name"]

    def test_what_it_leaves_out_fails(self, lab: Lab) -> None:
        options: dict[str, Any] = {"autoretry_for": (Exception,), "dont_autoretry_for": (LockConflict,)}
        task = singleton_task(app=lab.app, shared=False, name="task", lock_key="name", on_conflict="raise", **options)(
            lab.body
        )
        result, message = lab.publish(task)
        with lab.locks.lock("name"):
            run_message(lab.app, message)
        assert result.state == "FAILURE"
        assert not messages(lab.app)


def _away(*_: object) -> None:
    raise LockUnavailable("away")


class TestBases:
    def test_the_apps_class_whatever_it_is_named_by(self) -> None:
        class Theirs(Task):  # type: ignore[type-arg]
            abstract = True
            mark = 1

        for lab in (Lab(task_cls=Theirs), Lab(task_cls=f"{__name__}:ByName")):
            task = singleton_task(app=lab.app, name="task", shared=False, mark=2)(lab.body)
            assert task.mark == 2
            assert isinstance(task, (Theirs, ByName))
            assert isinstance(task, SingletonTask)
            lab.close()

    def test_ours_as_the_apps_class_leaves_celerys_own_tasks_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Each app gets the shared tasks of its process: here only Celery's, not those that other tests left.
        own = {each for each in _state._on_app_finalizers if each.__module__ == "celery.app.builtins"}
        monkeypatch.setattr(_state, "_on_app_finalizers", own)

        class Ours(SingletonTask[Any, Any]):
            abstract = True
            unique_on = "*"
            lock = "until_executed"
            on_conflict = "raise"

        lab = Lab(task_cls=Ours)
        task = lab.app.task(name="task", shared=False)(lab.body)
        made = singleton_task(app=lab.app, name="other", shared=False)(lab.body)
        assert isinstance(made, Ours)
        unlock = lab.app.tasks["celery.accumulate"]
        assert unlock(1, 2) == (1, 2)
        results = []
        with lab.locks.lock("celery.accumulate"):
            for _ in range(2):
                result, message = lab.publish(unlock, 1, 2)
                run_message(lab.app, message)
                results.append(result)
        assert [result.state for result in results] == ["SUCCESS", "SUCCESS"]
        with hold(task, 1), pytest.raises(LockConflict):
            task(1)
        lab.close()

    def test_a_shared_task_is_of_each_apps_class(self) -> None:
        name = f"shared{next(_numbers)}"

        @singleton_task(name=name)
        def shared() -> str:
            return current_lock().name

        for made in (type("One", (Task,), {"abstract": True}), type("Two", (Task,), {"abstract": True})):
            lab = Lab(task_cls=made)
            lab.app.finalize()
            task = lab.app.tasks[name]
            assert isinstance(task, made)
            assert isinstance(task, SingletonTask)
            assert task() == name
            lab.close()
        assert shared is not None

    def test_a_base_takes_its_place_as_in_celery(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        lab.app.Task = type("Theirs", (Task,), {"abstract": True})
        chosen = type("Chosen", (Task,), {"abstract": True})
        task = singleton_task(app=lab.app, base=chosen, name="task", shared=False)(lab.body)
        assert isinstance(task, chosen)
        assert not isinstance(task, lab.app.Task)
        assert "leaves out" not in caplog.text

    def test_ours_as_a_base_says_what_it_leaves_out(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        lab.app.Task = type("Theirs", (Task,), {"abstract": True})
        mine = type("Mine", (SingletonTask,), {"abstract": True})
        assert lab.app.task(base=mine, name="task", shared=False)(lab.body).name == "task"
        assert lab.app.task(base=mine, name="other", shared=False)(lab.body).name == "other"
        assert caplog.text.count("leaves out the app's own task class Theirs") == 1

    @pytest.mark.parametrize("given", [(), (KeyError,), KeyError, [KeyError]])
    def test_throws_of_a_base_and_ours(self, lab: Lab, given: Any) -> None:
        base = type("Base", (Task,), {"abstract": True, "throws": given})
        names = {"throws": given}
        made = [
            singleton_task(app=lab.app, base=base, name="a", shared=False)(lab.body),
            singleton_task(app=lab.app, name="b", shared=False, **names)(lab.body),
            lab.app.task(base=type("Both", (SingletonTask, base), {}), name="c", shared=False)(lab.body),
            lab.app.task(base=type("Both", (base, SingletonTask), {}), name="d", shared=False)(lab.body),
        ]
        lab.app.conf.task_annotations = {"e": names}
        made.append(singleton_task(app=lab.app, name="e", shared=False)(lab.body))
        for task in made:
            assert isinstance(LockConflict("x"), task.throws)
            assert isinstance(KeyError(), task.throws) == (given != ())

    def test_attributes_of_a_base_are_options(self, lab: Lab) -> None:
        base = type("Base", (Task,), {"abstract": True, "report_to": "ops"})
        task = singleton_task(app=lab.app, base=base, name="task", shared=False, report_to="sales")(lab.body)
        assert task.report_to == "sales"
        with pytest.raises(InvalidOption, match=r"unknown option 'report_at' .did you mean 'report_to'"):
            singleton_task(app=lab.app, shared=False, base=base, name="other", report_at="sales")(lab.body)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"once": {"graceful": True}}, "'once' is an option of celery-once"),
            ({"raise_on_duplicate": True}, "on_conflict='raise'"),
            ({"lock_expiry": 60}, "lock_ttl"),
            ({"heimdall": {"unique": True}}, "celery-heimdall"),
            ({"on_conflit": "retry"}, "did you mean 'on_conflict'"),
            ({"whatever": 1}, "unknown option 'whatever'"),
        ],
    )
    def test_leftover_options(self, lab: Lab, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidOption, match=message):
            lab.app.task(base=SingletonTask, name="a", shared=False, lazy=False, **options)(lab.body).name  # noqa: B018
        with pytest.raises(InvalidOption, match=message):
            singleton_task(app=lab.app, name="b", shared=False, **options)(lab.body).name  # noqa: B018
        if "whatever" not in options:
            base = type("Base", (SingletonTask,), {"abstract": True, **options})
            with pytest.raises(InvalidOption, match=message):
                lab.app.task(base=base, name="c", shared=False)(lab.body).name  # noqa: B018
        lab.app._tasks.pop("a", None)
        lab.app._pending.clear()

    @pytest.mark.parametrize("option", ["once", "lock_expiry", "unique_on", "on_conflict"])
    def test_leftover_options_of_a_call(self, lab: Lab, option: str) -> None:
        task = singleton_task(app=lab.app, name="task", shared=False)(lab.body)
        with pytest.raises(InvalidOption, match=option):
            task.apply_async(**{option: True})
        with pytest.raises(InvalidOption, match=option):
            task.s().set(**{option: True}).apply_async()
        assert task.apply_async(stamped_headers=[option], **{option: "mine"}).id


class ByName(Task):  # type: ignore[type-arg]
    abstract = True
    mark = 1


class TestWhatRunsLater:
    def test_bodies_that_only_begin_are_refused(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("celery_etcdlock.tasks.definition.checks.may_be_awaited", lambda: False)

        async def coroutine() -> None: ...

        async def stream() -> Any:
            yield 1

        def generator() -> Any:
            yield 1

        for number, body in enumerate((coroutine, stream, generator)):
            task: Any = singleton_task(app=lab.app, name=f"task{number}", shared=False)(body)
            with pytest.raises(InvalidOption, match="its body"):
                task.name  # noqa: B018
            with pytest.raises(InvalidOption, match="its body"):
                task.delay()
        lab.app._pending.clear()

    def test_batches_are_refused(self, lab: Lab) -> None:
        batches: Any = type("Batches", (Task,), {"abstract": True, "__module__": "celery_batches"})
        mine = type("Mine", (batches,), {"abstract": True, "__module__": "proj.tasks"})
        with pytest.raises(InvalidOption, match="celery-batches can't be locked"):
            singleton_task(app=lab.app, shared=False, base=mine, name="flush")(lab.body)
        lab.app._pending.clear()
