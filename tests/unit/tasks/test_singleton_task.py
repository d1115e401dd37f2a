"""``SingletonTask`` and ``@singleton_task`` in one process, on locks in memory."""

from __future__ import annotations

import contextvars
import itertools
import os
import pickle
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery, Task
from celery.exceptions import ImproperlyConfigured, TaskRevokedError

import celery_etcdlock
from celery_etcdlock import (
    EtcdLockError,
    EtcdLocks,
    InvalidKey,
    InvalidOption,
    LockConflict,
    LockLost,
    LockUnavailable,
    NotLocked,
    SingletonTask,
    current_lock,
    singleton_task,
)
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.locking.lock import Lock

_names = itertools.count()


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery(f"unit{next(_names)}", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.etcdlock_endpoints = "memory://"
    yield app
    EtcdLocks.from_app(app).close()


def held(app: Celery, name: str) -> Any:
    return EtcdLocks.from_app(app).lock(name)


class TestDefinition:
    def test_bare_decorator_without_an_app(self, app: Celery) -> None:
        app.set_current()

        @singleton_task
        def bare_shared() -> str:
            return current_lock().name

        assert bare_shared() == f"{__name__}.bare_shared"
        assert isinstance(app.tasks[f"{__name__}.bare_shared"], SingletonTask)

    def test_decorator_with_options_and_an_app(self, app: Celery) -> None:
        @singleton_task(app=app, name="n", unique_on=["a"], lock_ttl=60, max_retries=7)
        def task(a: int, b: int = 0) -> str:
            return current_lock().name

        assert task(1).startswith("n:")
        assert task(1) == task(a=1) == task(1, b=5) != task(2)
        assert task.max_retries == 7

    def test_base_and_bind(self, app: Celery) -> None:
        @app.task(base=SingletonTask, bind=True, lock_key="invoice:{invoice_id}", shared=False)
        def charge(self: Any, invoice_id: int) -> tuple[str, str]:
            return self.name, current_lock().name

        assert charge(7) == (f"{__name__}.charge", "invoice:7")

    def test_subclass_with_class_attributes(self, app: Celery) -> None:
        class Account(SingletonTask[Any, Any]):
            abstract = True
            unique_on = ("account",)
            on_conflict = "raise"

        @app.task(base=Account, shared=False)
        def sync(account: int) -> str:
            return current_lock().name

        assert sync(1) != sync(2)
        assert sync._lock_plan.options.on_conflict == "raise"

    def test_class_based_task_with_a_key_function(self, app: Celery) -> None:
        class Report(SingletonTask[Any, Any]):
            name = "report"

            @staticmethod
            def lock_key(day: str) -> str:
                return f"report:{day}"

            def run(self, day: str) -> str:
                return current_lock().name

        assert app.register_task(Report())("monday") == "report:monday"

    def test_key_function_as_an_option(self, app: Celery) -> None:
        @singleton_task(app=app, lock_key=lambda a, b=2: f"{a}-{b}")
        def task(a: int, b: int = 2) -> str:
            return current_lock().name

        assert task(1) == "1-2"

    def test_task_annotations(self, app: Celery) -> None:
        app.conf.task_annotations = {"annotated": {"lock_key": "from annotations"}}

        @app.task(base=SingletonTask, name="annotated", shared=False)
        def annotated() -> str:
            return current_lock().name

        assert annotated() == "from annotations"

    def test_a_base_of_the_users_own_is_combined(self, app: Celery) -> None:
        class Mine(Task):  # type: ignore[type-arg]
            abstract = True
            mine = True

        @singleton_task(app=app, base=Mine)
        def task() -> bool:
            return bool(current_lock().fencing_token)

        assert isinstance(task, Mine)
        assert isinstance(task, SingletonTask)
        assert task()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"unique_on": ["zz"]}, "unique_on names 'zz', which is no argument of the task"),
            ({"lock_key": "x:{zz}"}, "zz"),
            ({"lock_kye": "x"}, "unknown option 'lock_kye' .did you mean 'lock_key'"),
            ({"on_conflict": "sulk"}, "skip"),
            ({"lock": "until_expired"}, "needs unique_for"),
            ({"lock_limit": 0}, "lock_limit must be a whole number of holders"),
            ({"on_conflict": "join", "ignore_result": True}, "join"),
            ({"lock_ttl": 1}, "lock_ttl"),
            ({"lock_ttl": "long"}, "lock_ttl"),
            ({"unique_on": "*", "lock_key": "x"}, "unique_on and lock_key are both given"),
            ({"wait_timeout": -1}, "wait_timeout"),
        ],
    )
    def test_wrong_options_are_refused_at_definition(self, app: Celery, options: dict[str, Any], message: str) -> None:
        def task(account_id: int) -> None: ...

        with pytest.raises(InvalidOption, match=message):
            singleton_task(app=app, **options)(task)
        with pytest.raises(InvalidOption, match=message.split(" .did")[0]):
            app.task(base=SingletonTask, shared=False, name=f"n{next(_names)}", lazy=False, **options)(task).name  # noqa: B018


class TestCalls:
    def test_a_direct_call_locks_and_raises_on_conflict(self, app: Celery) -> None:
        """Rule 16."""

        @singleton_task(app=app)
        def task() -> str:
            return current_lock().name

        with held(app, f"{__name__}.task"), pytest.raises(LockConflict, match="is held by pid"):
            task()
        assert task() == f"{__name__}.task"

    def test_a_holder_of_another_broker_is_told_of(self, app: Celery, caplog: pytest.LogCaptureFixture) -> None:
        """Rule 19: staging must not silently skip production's tasks."""

        @singleton_task(app=app, lock_key="shared")
        def task() -> None: ...

        locks = EtcdLocks.from_app(app)
        ours = locks.record(Delivery("theirs"), "proj.task")
        theirs = locks.manager.acquire("shared", replace(ours, broker="another"), ttl_seconds=30)
        assert isinstance(theirs, Lock)
        with pytest.raises(LockConflict):
            task()
        assert "is held by a task of another broker (task theirs" in caplog.text
        assert "etcdlock_prefix" in caplog.text
        caplog.clear()

        @singleton_task(app=app, lock_key="shared", lock="until_executed")
        def queued() -> None: ...

        queued.delay()
        assert "is held by a task of another broker (task theirs" in caplog.text
        locks.manager.release(theirs)
        caplog.clear()
        assert isinstance(locks.manager.acquire("shared", ours, ttl_seconds=30), Lock)
        with pytest.raises(LockConflict):
            task()
        assert "another broker" not in caplog.text

    def test_an_eager_skip_is_revoked(self, app: Celery) -> None:
        """Rule 16."""

        @singleton_task(app=app)
        def task() -> str:
            return current_lock().name

        with held(app, f"{__name__}.task"):
            result = task.apply()
        assert result.state == "REVOKED"
        with pytest.raises(TaskRevokedError, match="not run: lock"):
            result.get()
        assert task.apply().get() == f"{__name__}.task"

    @pytest.mark.parametrize("policy", ["raise", "retry"])
    def test_an_eager_conflict_raises(self, app: Celery, policy: str) -> None:
        """Rule 16."""

        @singleton_task(app=app, on_conflict=policy)
        def task() -> None: ...

        with held(app, f"{__name__}.task"):
            result = task.apply()
        assert result.state == "FAILURE"
        with pytest.raises(LockConflict):
            result.get()

    def test_always_eager(self, app: Celery) -> None:
        app.conf.task_always_eager = True

        @singleton_task(app=app, on_conflict="skip")
        def task() -> int:
            return current_lock().fencing_token

        first, second = task.delay().get(), task.delay().get()
        assert second > first

    def test_the_lock_is_released_when_the_body_raises(self, app: Celery) -> None:
        @singleton_task(app=app)
        def task() -> None:
            raise ValueError("on purpose")

        for _ in range(2):
            with pytest.raises(ValueError, match="on purpose"):
                task()

    def test_an_argument_without_a_canonical_text(self, app: Celery) -> None:
        @singleton_task(app=app, unique_on=["value"])
        def task(value: object) -> None: ...

        with pytest.raises(InvalidKey, match=r"value.*lock_key"):
            task(object())

    def test_a_hash_key_changes_names(self, app: Celery) -> None:
        @singleton_task(app=app, unique_on=["value"])
        def task(value: str) -> str:
            return current_lock().name

        other = Celery("other", broker="memory://", set_as_current=False)
        other.conf.update(etcdlock_endpoints="memory://", etcdlock_hash_key="0123456789abcdef")

        @singleton_task(app=other, name=task.name, unique_on=["value"])
        def keyed(value: str) -> str:
            return current_lock().name

        assert task("x") != keyed("x")

    def test_there_is_no_current_lock_outside(self, app: Celery) -> None:
        with pytest.raises(NotLocked, match="SingletonTask"):
            current_lock()


class TestOutage:
    def unavailable(self, app: Celery, policy: str) -> None:
        app.conf.update(etcdlock_endpoints="127.0.0.1:1", etcdlock_timeout=0.2, etcdlock_on_unavailable=policy)

    @pytest.mark.parametrize("policy", ["retry", "raise"])
    def test_a_direct_or_eager_call_raises(self, app: Celery, policy: str) -> None:
        self.unavailable(app, policy)

        @singleton_task(app=app)
        def task() -> None:
            raise AssertionError("must not run")

        with pytest.raises(LockUnavailable, match="refused"):
            task()
        assert isinstance(task.apply().result, LockUnavailable)

    def test_run_runs_with_a_lock_that_is_lost(self, app: Celery, caplog: pytest.LogCaptureFixture) -> None:
        self.unavailable(app, "run")

        @singleton_task(app=app)
        def task() -> tuple[int, bool, float]:
            with pytest.raises(LockLost, match="never taken"):
                current_lock().check()
            return current_lock().fencing_token, current_lock().lost, current_lock().remaining

        assert task() == (0, True, 0.0)
        assert "runs WITHOUT its lock" in caplog.text


class TestSettings:
    def test_an_environment_variable_is_the_default_of_endpoints(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ETCDLOCK_ENDPOINTS", "memory://")
        assert EtcdLocks.from_app(Celery("env", set_as_current=False)).settings.endpoints == ("memory://",)

    def test_a_namespace(self) -> None:
        app = Celery("django", set_as_current=False)
        settings = types.SimpleNamespace(CELERY_ETCDLOCK_TTL=44, CELERY_ETCDLOCK_ENDPOINTS="memory://", DEBUG=True)
        app.config_from_object(settings, namespace="CELERY")
        assert EtcdLocks.from_app(app).settings.ttl == 44

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ("CELERY_ETCDLOCK_TTLL", "unknown setting 'etcdlock_ttll' .did you mean 'etcdlock_ttl'"),
            ("ETCDLOCK_TTL", "write CELERY_ETCDLOCK_TTL"),
        ],
    )
    def test_a_slip_under_a_namespace(self, key: str, message: str) -> None:
        app = Celery("django", set_as_current=False)
        app.config_from_object(types.SimpleNamespace(**{key: 44}), namespace="CELERY")
        with pytest.raises(ImproperlyConfigured, match=message):
            _ = EtcdLocks.from_app(app).settings

    def test_the_password_is_nowhere(self, caplog: pytest.LogCaptureFixture) -> None:
        app = Celery("secret", set_as_current=False)
        app.conf.update(etcdlock_username="u", etcdlock_password="hunter2hunter2", etcdlock_timeout=0.2)
        app.conf.etcdlock_endpoints = "127.0.0.1:1"
        caplog.set_level("DEBUG")
        locks = EtcdLocks.from_app(app)
        with pytest.raises(LockUnavailable) as caught, locks.lock("x"):
            pass
        seen = f"{caught.value!r} {caught.value} {locks.settings!r} {locks!r} {caplog.text} {app.bugreport()}"
        assert "hunter2hunter2" not in seen

    def test_endpoints_are_parsed_before_anything_is_asked(self) -> None:
        app = Celery("bad", set_as_current=False)
        app.conf.etcdlock_endpoints = "http://a:1,https://b:2"
        with pytest.raises(ImproperlyConfigured, match="etcdlock_endpoints"):
            _ = EtcdLocks.from_app(app).manager


class TestTrustInCurrentLock:
    def test_one_that_is_kept_past_its_task(self, app: Celery) -> None:
        kept: list[Any] = []

        @singleton_task(app=app, shared=False, name="kept")
        def kept_past_its_end() -> None:
            kept.append(current_lock())
            contexts.append(contextvars.copy_context())
            current_lock().check()

        contexts: list[contextvars.Context] = []
        kept_past_its_end()
        in_copy = contexts[0].run(current_lock)
        with held(app, "kept") as theirs:
            theirs.check()
            for lock in (kept[0], in_copy):
                assert (lock.lost, lock.remaining) == (True, 0.0)
                with pytest.raises(LockLost, match="it was released"):
                    lock.check()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_one_in_a_child_that_the_body_forks(self, app: Celery) -> None:
        @singleton_task(app=app, shared=False, name="forks")
        def forks() -> int:
            child = os.fork()
            if child == 0:
                lock = current_lock()
                os._exit(int(lock.remaining > 0 and not lock.lost))
            current_lock().check()
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        assert forks() == 1, "the copy may ask, and is told what its parent knows (tests/unit/tasks/test_forked_copies)"


class TestStandalone:
    def test_wrong_arguments(self, app: Celery) -> None:
        locks = EtcdLocks.from_app(app)
        with pytest.raises(ValueError, match="name must be"):
            locks.lock("")
        with pytest.raises(ValueError, match="wait_timeout must be"):
            locks.lock("a", wait_timeout=float("inf"))
        with pytest.raises(ValueError, match="lock_ttl must be"):
            locks.lock("a", lock_ttl=1)

    def test_it_is_not_reentrant(self, app: Celery) -> None:
        lock = held(app, "a")
        with lock:
            with pytest.raises(EtcdLockError, match="this thread holds it already"):
                lock.__enter__()
            with pytest.raises(LockConflict), held(app, "a"):
                pass
        with lock:
            pass

    def test_from_app_is_one_object(self, app: Celery) -> None:
        assert EtcdLocks.from_app(app) is EtcdLocks.from_app(app)


def test_public_names() -> None:
    assert celery_etcdlock.__all__ == [
        "AsyncEtcdLock",
        "CurrentLock",
        "EtcdLock",
        "EtcdLockError",
        "EtcdLocks",
        "HeldLock",
        "InvalidKey",
        "InvalidOption",
        "InvalidSetting",
        "LockConflict",
        "LockHolder",
        "LockLost",
        "LockUnavailable",
        "NotLocked",
        "SingletonTask",
        "TaskLock",
        "current_lock",
        "lock_for",
        "singleton_task",
    ]
    assert all(getattr(celery_etcdlock, name) for name in celery_etcdlock.__all__)


@pytest.mark.parametrize(
    "error",
    [
        LockConflict("name", "holder"),
        LockLost("name", "reason"),
        LockUnavailable("why", maybe_applied=True, permanent=True),
        NotLocked("why"),
        InvalidOption("why"),
        InvalidKey("why"),
    ],
)
def test_errors_survive_a_pickle(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
