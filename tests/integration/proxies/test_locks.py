"""Locks held, awaited and handed over through proxies that restart and lose patience."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_etcdlock import EtcdLocks
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.errors import ConnectFailed, DeadlinePassed, EtcdError
from celery_etcdlock.etcd.streaming_call import EtcdStream
from tests.etcd_server import running_etcd
from tests.integration.etcd.conftest import Api
from tests.integration.etcd.test_trouble import locks_at, stays_held, stays_trusted
from tests.integration.proxies.conftest import IMPATIENT, KINDS, StartProxy
from tests.waiting import wait_for

TTL_SECONDS = 4
#: Of the proxy: a waiter waits, and a holder holds, for longer.
IDLE_SECONDS = 1


@pytest.fixture
def locks_through(authority: Any) -> Callable[..., Any]:
    def through(endpoint: str, *, tls: bool) -> Any:
        if tls:
            return locks_at(f"https://{endpoint}", TTL_SECONDS, etcdlock_ca_cert=authority.ca_cert)
        return locks_at(endpoint, TTL_SECONDS)

    return through


@pytest.fixture
def ends_of_watches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why the watches of this process ended before their time."""
    ends: list[str] = []
    receive = EtcdStream.receive

    def noted(self: EtcdStream, timeout_seconds: float) -> bytes | None:
        try:
            message = receive(self, timeout_seconds)
        except DeadlinePassed:
            raise
        except EtcdError as error:
            ends.append(str(error))
            raise
        if self.ended:
            ends.append("ended")
        return message

    monkeypatch.setattr(EtcdStream, "receive", noted)
    return ends


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_outlives_its_proxy(
    kind: str, tls: bool, start_proxy: StartProxy, locks_through: Callable[..., Any], ends_of_watches: list[str]
) -> None:
    proxy = start_proxy(kind, tls=tls, idle_seconds=IDLE_SECONDS)
    with locks_through(proxy.endpoint, tls=tls) as locks, locks_through(proxy.endpoint, tls=tls) as others:
        with locks.lock("held") as lock:
            waiter = Waiter(others, "held")
            wait_for(lambda: len(locks.manager.keys("held")) == 2, "the waiter is in line")
            stays_trusted(lock, IDLE_SECONDS * 3)
            assert bool(ends_of_watches) is (kind in IMPATIENT), "its patience ends in mid-call, if it has any"
            proxy.terminate()
            proxy.start()
            stays_held(lock, others, TTL_SECONDS * 0.6)
            proxy.kill()
            proxy.start()
            stays_held(lock, others, TTL_SECONDS * 0.6)
        assert waiter.entered.wait(20), "the waiter is woken, or looks again"
        waiter.thread.join(20)
        assert not waiter.problems


class Waiter:
    """Waits for a lock in a thread of its own."""

    def __init__(self, locks: EtcdLocks, name: str) -> None:
        self.entered = threading.Event()
        self.problems: list[BaseException] = []
        self._locks, self._name = locks, name
        self.thread = threading.Thread(target=self._wait)
        self.thread.start()

    def _wait(self) -> None:
        try:
            with self._locks.lock(self._name, wait_timeout=60):
                self.entered.set()
        except BaseException as problem:
            self.problems.append(problem)


@pytest.mark.parametrize("kind", IMPATIENT)
def test_a_connection_that_the_proxy_gave_up_is_not_used_again(kind: str, start_proxy: StartProxy) -> None:
    proxy = start_proxy(kind, idle_seconds=IDLE_SECONDS)
    client = EtcdClient(proxy.endpoint)
    path, request = "/etcdserverpb.KV/Range", b"\x0a\x01k"
    client.call(path, request, 10)
    (idle,) = client._pool.idle
    wait_for(lambda: not idle.still_alive(), "the proxy closes what is idle")
    client.call(path, request, 10)
    assert idle not in client._pool.idle
    client.close()


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """The endpoint of an etcd with a user joe, who may use /celery-etcdlock/."""
    with running_etcd(fsync=False, extra_args=["--bcrypt-cost=4"]) as server:
        client = EtcdClient(server.endpoint)
        admin = Api(client)
        admin.add_role("locks", b"/celery-etcdlock/", b"/celery-etcdlock0")
        admin.add_user("joe", "joespw", "locks")
        admin.add_role("root")
        admin.add_user("root", "rootpw", "root")
        admin.enable_auth()
        client.close()
        yield server.endpoint


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_logs_in_through_it(kind: str, guarded: str, start_proxy: StartProxy) -> None:
    login = {"etcdlock_username": "joe", "etcdlock_password": "joespw"}
    proxy = start_proxy(kind, before=guarded)
    with locks_at(proxy.endpoint, **login) as locks, locks_at(proxy.endpoint, **login) as others:
        with locks.lock(f"login {kind}"):
            waiter = Waiter(others, f"login {kind}")
            wait_for(lambda: len(locks.manager.keys(f"login {kind}")) == 2, "the waiter is in line")
        assert waiter.entered.wait(20)
        waiter.thread.join(20)
        assert not waiter.problems


@pytest.mark.parametrize("kind", KINDS)
def test_tls_that_was_forgotten_is_named(kind: str, start_proxy: StartProxy) -> None:
    client = EtcdClient(start_proxy(kind, tls=True).endpoint)
    with pytest.raises(ConnectFailed, match=r"wants? TLS") as caught:
        client.call("/etcdserverpb.KV/Range", b"\x0a\x01k", 3)
    assert not caught.value.maybe_applied
