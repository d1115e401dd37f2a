"""``hold``, ``assert_locked``, ``assert_free`` and ``use_locks``, in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from celery import Celery, shared_task
from celery.contrib.testing.worker import start_worker

from celery_etcdlock import EtcdLocks, LockConflict, SingletonTask, singleton_task
from celery_etcdlock.testing import assert_free, assert_locked, hold, use_locks

_names = itertools.count()


@pytest.fixture
def app() -> Celery:
    """Its settings name an etcd that isn't there, and a certificate."""
    app = Celery(f"testing{next(_names)}", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(etcdlock_endpoints="https://nowhere.invalid:1", etcdlock_ca_cert="/nowhere.pem")
    return app


@pytest.fixture
def sync(app: Celery) -> SingletonTask:
    @singleton_task(app=app, unique_on=["account"], shared=False)
    def sync(account: int, full: bool = False) -> int:
        return account

    return sync


class TestInMemory:
    @pytest.fixture(autouse=True)
    def in_memory(self) -> Iterator[None]:
        with use_locks("memory://"):
            yield

    def test_hold_makes_a_conflict_for_this_key_alone(self, sync: SingletonTask) -> None:
        with hold(sync, account=1):
            assert sync.apply((1, True)).state == "REVOKED"
            assert sync.apply((2,)).state == "SUCCESS"
            with pytest.raises(LockConflict):
                sync(1)
        assert sync.apply((1,)).state == "SUCCESS"

    def test_assertions_see_a_lock_and_say_who_holds_it(self, sync: SingletonTask) -> None:
        assert_free(sync, 1)
        with pytest.raises(AssertionError, match=r"sync:\w+' is free, and should be held"):
            assert_locked(sync, 1)
        with hold(sync, 1):
            assert_locked(sync, account=1)
            assert_free(sync, 2)
            with pytest.raises(AssertionError, match=r"should be free, and is held by pid \d+"):
                assert_free(sync, 1)
        assert_free(sync, 1)

    def test_what_is_held_already_can_not_be_held(self, sync: SingletonTask) -> None:
        with hold(sync, 1), pytest.raises(LockConflict), hold(sync, 1):
            raise AssertionError

    def test_of_a_limit_it_is_one_holder_and_of_several_locks_all(self, app: Celery) -> None:
        @singleton_task(app=app, lock_limit=2, shared=False)
        def limited() -> None: ...

        @singleton_task(app=app, lock_key=["a:{n}", "b:{n}"], shared=False)
        def several(n: int) -> None: ...

        with hold(limited):
            assert limited.apply().state == "SUCCESS"
            with hold(limited):
                assert limited.apply().state == "REVOKED"
        with hold(several, 1):
            assert several.apply((1,)).state == "REVOKED"
            assert_locked(several, 1)
            assert EtcdLocks.from_app(app).holders("b:1")
        assert_free(several, 1)

    def test_a_plain_task_is_refused(self, app: Celery) -> None:
        @app.task(name="plain", shared=False)
        def plain() -> None: ...

        for use in (hold, assert_locked, assert_free):
            with pytest.raises(TypeError, match="plain takes no lock"):
                use(plain)

    def test_a_shared_task_of_the_current_app(self, app: Celery) -> None:
        app.set_current()

        @shared_task(base=SingletonTask)
        def shared() -> None: ...

        with hold(shared):
            assert_locked(shared)

    def test_an_in_process_worker_sees_the_same_locks(self, app: Celery, sync: SingletonTask) -> None:
        with start_worker(app, perform_ping_check=False, shutdown_timeout=30):
            with hold(sync, 1):
                result = sync.delay(1)
                assert "is held by pid" in str(result.get(timeout=20, propagate=False))
            assert result.state == "REVOKED"
            assert sync.delay(1).get(timeout=20) == 1


def test_each_use_begins_empty_and_the_settings_come_back(app: Celery, sync: SingletonTask) -> None:
    locks = EtcdLocks.from_app(app)
    with use_locks("memory://"):
        hold(sync, 1).__enter__()
        with use_locks("memory://"):
            assert_free(sync, 1)
        assert locks.settings.endpoints == ("memory://",)
    assert locks.settings.endpoints == ("https://nowhere.invalid:1",)
    assert locks.settings.ca_cert == "/nowhere.pem"


def test_no_endpoint_is_an_error() -> None:
    with pytest.raises(ValueError, match="name at least one endpoint"), use_locks():
        raise AssertionError
