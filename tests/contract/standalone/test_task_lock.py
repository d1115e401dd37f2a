"""``lock_for``: a task's lock from Python."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from celery_etcdlock import EtcdLocks, InvalidKey, LockConflict, LockLost, current_lock, lock_for, singleton_task
from celery_etcdlock.tasks.once_per_message import OncePerMessage
from celery_etcdlock.worker.apply_dedup import deduplicate

_names = itertools.count()


@pytest.fixture
def app(locks: EtcdLocks) -> Celery:
    app = locks._app
    app.conf.update(result_backend="cache+memory://", etcdlock_ttl=3, etcdlock_timeout=2)
    app.conf.etcdlock_dedup = {"reports.*": {"unique_on": ["day"], "lock_limit": 2}, "once.*": "task_id"}
    return app


def task_of(app: Celery, body: Callable[[], Any] = lambda: None, **options: Any) -> Any:
    def sync(account: int, full: bool = False) -> Any:
        return body()

    return singleton_task(app=app, name=f"sync{next(_names)}", shared=False, **{"unique_on": ["account"]} | options)(
        sync
    )


def test_who_holds_it_and_holding_it(app: Celery) -> None:
    task = task_of(app)
    lock = task.lock_for(account=7)
    assert (lock.locked(), lock.holder) == (False, None)
    assert lock.names == (lock.name,) == task.lock_for(7, full=True).names != task.lock_for(8).names
    with lock.hold(note="by hand") as held:
        assert held.name == lock.name
        assert (lock.locked(), lock.holder.what) == (True, "by hand")
        assert task.apply((7,)).state == "REVOKED"
        assert task.apply((8,)).state == "SUCCESS"
        with pytest.raises(LockConflict), task.lock_for(7).hold():
            pytest.fail("the block runs")
    assert task.apply((7,)).state == "SUCCESS"


def test_release_asks_the_holder_and_waits_for_it(app: Celery) -> None:
    ended: list[BaseException] = []
    begun = threading.Event()

    def body() -> None:
        begun.set()
        try:
            while True:
                current_lock().check()
                threading.Event().wait(0.01)
        except LockLost as error:
            ended.append(error)

    task = task_of(app, body)
    runs = threading.Thread(target=lambda: task.apply((7,)))
    runs.start()
    assert begun.wait(20)
    lock = task.lock_for(7)
    assert lock.holder.what == task.name
    assert lock.release(timeout=30)
    runs.join(20)
    assert "asked its holder to release" in str(ended[0])
    assert not lock.locked()
    assert lock.release(), "nobody held it"


def test_release_by_force_is_at_once(app: Celery) -> None:
    task = task_of(app, lock_limit=2)
    lock = task.lock_for(7)
    first, second = lock.hold(), lock.hold()
    assert first.acquire()
    assert second.acquire()
    assert not lock.release(timeout=0), "they were asked, and go on"
    assert lock.release(force=True)
    assert not lock.locked()
    for held in (first, second):
        with pytest.raises(LockLost):
            held.release()


def test_what_a_message_holds_is_freed_by_force(app: Celery) -> None:
    task = task_of(app, lock="until_executed")
    task.delay(7)
    lock = task.lock_for(7)
    assert lock.locked()
    assert lock.release(force=True)
    assert not lock.locked()


def test_several_locks(app: Celery) -> None:
    task = task_of(app, unique_on=None, lock_key=["a:{account}", "b:{account}"])
    lock = task.lock_for(7)
    assert lock.names == ("a:7", "b:7")
    with lock.hold():
        assert EtcdLocks.from_app(app).lock("b:7").locked()
    assert not lock.locked()


def test_tasks_that_are_locked_by_setting(app: Celery) -> None:
    @app.task(name=f"reports.daily{next(_names)}", bind=True, shared=False)
    def daily(self: Any, day: str, verbose: bool = False) -> None: ...

    @app.task(name=f"once.a{next(_names)}", shared=False)
    def once() -> None: ...

    @app.task(name=f"other{next(_names)}", shared=False)
    def other() -> None: ...

    in_producer = lock_for(daily, "monday", verbose=True)
    with in_producer.hold() as held:
        assert held.name.startswith("reports.daily")
        assert in_producer.hold().acquire(), "its limit is 2"
    for wrong, message in ((once, "each of its messages by the message's id"), (other, "takes no lock"), (3, "a task")):
        with pytest.raises(TypeError, match=message):
            lock_for(wrong)  # type: ignore[arg-type]
    deduplicate(app, EtcdLocks.from_app(app).settings.dedup or ())  # as a worker does
    assert lock_for(daily, day="monday").names == in_producer.names
    assert isinstance(app.tasks[once.name], OncePerMessage)
    with pytest.raises(TypeError, match="each of its messages"):
        lock_for(once)


def test_arguments_that_make_no_lock(app: Celery) -> None:
    task = task_of(app)
    with pytest.raises((TypeError, InvalidKey)):
        task.lock_for()
    with pytest.raises(InvalidKey):
        task.lock_for(object())
