"""Ends of keys on a real etcd: after a leader change, which gives every lease its whole TTL anew; and with a login."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_etcdlock.core.operations import AskAge
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import LeaseAge
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.etcd_store import EtcdStore
from celery_etcdlock.locking.clock import boot_time
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.outcomes import Claim
from tests.etcd_server import running_etcd
from tests.waiting import wait_for

MINUTES = 60.0
RECORD = Record(Delivery("t"), "proj.task", "host", 1, 0.0)


@pytest.fixture
def server() -> Iterator[Any]:
    with running_etcd(fsync=False, extra_args=["--bcrypt-cost=4"]) as started:
        yield started


@pytest.fixture
def host(server: Any, request: pytest.FixtureRequest) -> Callable[..., LockManager]:
    def make(ahead: float = 0.0, **login: str) -> LockManager:
        store = EtcdStore(EtcdClient(server.endpoint, **login), "/locks/")
        manager = LockManager(store, store, wall_clock=lambda: time.time() + ahead)
        request.addfinalizer(manager.close)
        return manager

    return make


def claimed(manager: LockManager, name: str, seconds: float) -> bool:
    [outcome] = manager.claims.claim_each([(name, RECORD)], seconds)
    return isinstance(outcome, Claim)


def age(server: Any, key: Any) -> LeaseAge:
    client = EtcdClient(server.endpoint)
    reply = EtcdStore(client, "/locks/").perform(AskAge(key.lease), 5.0)
    client.close()
    assert isinstance(reply, LeaseAge)
    return reply


def test_a_leader_change_puts_ends_off_and_no_clock_ten_minutes_ahead_frees_anything(
    server: Any, host: Callable[..., LockManager]
) -> None:
    before = boot_time()
    assert claimed(host(), "window", 50.0)
    assert claimed(host(), "short", 3.0)
    [window] = host().keys("window")
    wait_for(lambda: age(server, window).seconds >= 2, "the lease gets older")
    term = age(server, window).term

    server.terminate()
    server.spawn().wait_healthy()
    after = age(server, window)
    assert after.term > term
    assert after.seconds < 2, "it counts anew"

    assert not claimed(host(10 * MINUTES), "window", 50.0)
    assert not claimed(host(-10 * MINUTES), "window", 50.0)
    wait_for(lambda: claimed(host(), "short", 50.0), "its time is over, by the new leader's count")
    assert boot_time() - before >= 3.0
    assert claimed(host(16 * MINUTES), "window", 50.0), "a wall clock so far on decides now"


def test_who_may_read_and_write_the_prefix_may_ask(
    server: Any, host: Callable[..., LockManager], make_api: Callable[[Any], Any]
) -> None:
    admin = make_api(EtcdClient(server.endpoint))
    admin.add_role("root")
    admin.add_user("root", "rootpw", "root")
    admin.add_role("locks", b"/locks/", b"/locks0")
    admin.add_user("joe", "joe's", "locks")
    admin.enable_auth()
    login = {"username": "joe", "password": "joe's"}
    assert claimed(host(**login), "a", 1.0)
    ahead = host(10 * MINUTES, **login)
    assert not claimed(ahead, "a", 60.0)
    wait_for(lambda: claimed(ahead, "a", 60.0), "its time is over")
