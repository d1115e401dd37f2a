"""Locks that are held, awaited and released while etcd is in trouble: what etcd survives, they survive."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_etcdlock import EtcdLocks, LockConflict, LockLost
from celery_etcdlock.etcd import messages as m
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.errors import NoSpace
from tests.conftest import missing
from tests.etcd_server import EtcdCluster, EtcdServer, ServerTls, running_etcd
from tests.fault_proxy import FaultProxy
from tests.waiting import wait_for

#: Above a call's time-out and an election, with time to spare for a busy machine: neither costs anybody a lease.
CLUSTER_TTL_SECONDS = 9
#: Where nothing is elected.
TTL_SECONDS = 3
TIMEOUT_SECONDS = 2.5


@contextmanager
def locks_at(endpoints: object, ttl_seconds: int = TTL_SECONDS, **settings: object) -> Iterator[EtcdLocks]:
    app = Celery("trouble", broker="memory://", set_as_current=False)
    defaults = {"etcdlock_endpoints": endpoints, "etcdlock_ttl": ttl_seconds, "etcdlock_timeout": TIMEOUT_SECONDS}
    app.conf.update(defaults | settings)
    locks = EtcdLocks.from_app(app)
    try:
        yield locks
    finally:
        locks.close()


def stays_trusted(lock: Any, seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        lock.check()
        time.sleep(0.02)


def stays_held(lock: Any, others: EtcdLocks, seconds: float) -> None:
    """Trusted by its holder all the time, and refused to others at the end of it."""
    stays_trusted(lock, seconds)
    with pytest.raises(LockConflict), others.lock(lock.name, wait_timeout=1.0):
        pytest.fail("two holders")


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster(fsync=False) as started:
        yield started


def leader_of(cluster: EtcdCluster) -> EtcdServer:
    for member in cluster.members:
        client = EtcdClient(member.endpoint)
        answer = client.call("/etcdserverpb.Maintenance/Status", m.StatusRequest().SerializeToString(), 5.0)
        client.close()
        status = m.StatusResponse.FromString(answer)
        if status.leader == status.header.member_id:
            return member
    raise AssertionError("no leader")


@pytest.mark.parametrize("trouble", ["leader killed", "leader stopped", "all restarted", "leader says goodbye"])
def test_a_cluster_that_recovers_costs_nobody_a_lock(cluster: EtcdCluster, trouble: str) -> None:
    ttl_seconds = CLUSTER_TTL_SECONDS
    with (
        locks_at(cluster.endpoints, ttl_seconds) as locks,
        locks_at(cluster.endpoints, ttl_seconds) as others,
        locks.lock(trouble) as lock,
    ):
        hurt = leader_of(cluster)
        if trouble == "leader stopped":
            hurt.pause()
        elif trouble == "leader killed":
            hurt.kill()
        elif trouble == "leader says goodbye":
            hurt.terminate()  # GOAWAY
        else:
            for member in cluster.members:
                member.kill()
            for member in cluster.members:
                member.spawn()
        try:
            # A leader that was stopped for longer revokes leases that others have renewed (etcd issue 15247).
            stays_held(lock, others, ttl_seconds * (0.8 if trouble == "leader stopped" else 1.05))
        finally:
            if hurt.process is None:
                hurt.spawn()
            else:
                hurt.resume()
            for member in cluster.members:
                member.wait_healthy()
        if trouble == "leader stopped":
            stays_held(lock, others, ttl_seconds * 0.5)


def test_compaction_under_a_waiter(etcd: EtcdServer, make_api: Any) -> None:
    with locks_at(etcd.endpoint) as locks, locks_at(etcd.endpoint) as others:
        entered = threading.Event()

        def wait() -> None:
            with others.lock("compacted", wait_timeout=30.0):
                entered.set()

        with locks.lock("compacted"):
            waiter = threading.Thread(target=wait)
            waiter.start()
            client = EtcdClient(etcd.endpoint)
            wait_for(lambda: len(locks.manager.keys("compacted")) == 2, "the waiter is in line")
            api = make_api(client)
            for number in range(5):
                revision = api.put(b"/elsewhere", b"%d" % number).header.revision
            api("KV/Compact", m.CompactionRequest(revision=revision), m.CompactionResponse)
            client.close()
            assert not entered.is_set()
        assert entered.wait(10)
        waiter.join()


def test_out_of_space(make_api: Any) -> None:
    def fill() -> None:
        for number in range(1000):
            api.put(b"/fill/%d" % number, b"x" * 10_000)

    args = ["--quota-backend-bytes=200000"]
    with running_etcd(fsync=False, extra_args=args) as server, locks_at(server.endpoint) as locks:
        api = make_api(EtcdClient(server.endpoint))
        with locks.lock("full") as lock:
            with pytest.raises(NoSpace):
                fill()
            stays_trusted(lock, TTL_SECONDS * 1.2)
        # Refused a delete, it is freed by the end of its lease, long before that runs out.
        wait_for(lambda: not locks.manager.keys("full"), "the lock is free", TTL_SECONDS)


def test_login_that_expires_and_auth_that_is_switched_on(make_api: Any) -> None:
    args = ["--bcrypt-cost=4", "--auth-token-ttl=1"]
    with running_etcd(fsync=False, extra_args=args) as server:
        admin = make_api(EtcdClient(server.endpoint))
        admin.add_role("root")
        admin.add_user("root", "rootpw", "root")
        login = {"etcdlock_username": "root", "etcdlock_password": "rootpw"}
        with locks_at(server.endpoint, **login) as locks, locks_at(server.endpoint, **login) as others:
            with locks.lock("login") as lock:
                admin.enable_auth()
                stays_held(lock, others, TTL_SECONDS * 1.2)
            with others.lock("login") as lock:
                lock.check()


def test_a_server_with_another_certificate(authority: Any) -> None:
    first, second = authority.issue("first"), authority.issue("second")
    server = EtcdServer(tls=ServerTls(*first), fsync=False).start()
    url = f"https://{server.endpoint}"
    try:
        with locks_at(url, etcdlock_ca_cert=authority.ca_cert) as locks:
            with locks.lock("certificate") as lock:
                server.kill()
                server.tls = ServerTls(*second)
                server.spawn().wait_healthy()
                stays_trusted(lock, TTL_SECONDS * 1.2)
            with locks.lock("certificate") as again:
                assert again.fencing_token > lock.fencing_token
    finally:
        server.stop()


def test_a_slow_disk() -> None:
    if shutil.which("strace") is None:
        missing("strace, which makes the disk slow,")
    with running_etcd() as server:
        delay = "inject=fdatasync,fsync:delay_enter=200000"
        slow = subprocess.Popen(
            [
                "strace",
                "-f",
                "-q",
                "-o",
                "/dev/null",
                "-e",
                "trace=fdatasync,fsync",
                "-e",
                delay,
                "-p",
                str(server.pid),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: "TracerPid:\t0" not in Path(f"/proc/{server.pid}/status").read_text(), "strace is at it")
            # etcd syncs several times for a commit, as its version likes.
            patient = {"etcdlock_ttl": 5, "etcdlock_timeout": 4}
            with locks_at(server.endpoint, **patient) as locks, locks_at(server.endpoint, **patient) as others:
                started = time.monotonic()
                with locks.lock("slow") as lock:
                    assert time.monotonic() - started > 0.2
                    stays_held(lock, others, 6.0)
        finally:
            slow.terminate()
            slow.wait(10)


@pytest.fixture
def proxy(etcd: EtcdServer) -> Iterator[FaultProxy]:
    with FaultProxy(etcd.port) as made:
        yield made


@pytest.mark.parametrize("heals", [True, False], ids=["heals", "stays"])
def test_replies_lost_in_mid_acquire(etcd: EtcdServer, proxy: FaultProxy, heals: bool) -> None:
    """Acquired once or not at all: never a ghost that holds the lock for nobody."""
    name = f"acquire {heals}"
    # On a slow machine the session's own lock may be lost meanwhile, and rightly so.
    session = contextlib.ExitStack()
    session.enter_context(contextlib.suppress(LockLost))
    with locks_at(proxy.endpoint) as locks, locks_at(etcd.endpoint) as others, session:
        session.enter_context(locks.lock("a session is open"))
        proxy.swallow_replies = True
        healed = threading.Timer(1.0, proxy.heal) if heals else threading.Timer(60.0, proxy.heal)
        healed.start()
        try:
            if heals:
                with locks.lock(name) as lock:
                    lock.check()
                    assert len(others.manager.keys(name)) == 1
            else:
                with pytest.raises(Exception, match=r"answer|time"), locks.lock(name):
                    pytest.fail("entered in doubt")
                # It was applied, for nobody has heard: as soon as etcd answers, it goes.
                assert len(others.manager.keys(name)) == 1
                proxy.heal()
        finally:
            healed.cancel()
        wait_for(lambda: not others.manager.keys(name), "nothing is left of it", 5.0)
        with others.lock(name):
            pass


def test_replies_lost_in_mid_release(etcd: EtcdServer, proxy: FaultProxy) -> None:
    with locks_at(proxy.endpoint) as locks, locks_at(etcd.endpoint) as others:
        with locks.lock("release") as lock:
            proxy.swallow_replies = True
        # Applied at once, and repeated by us, who don't know: the next owner's lock stays.
        with others.lock("release", wait_timeout=1.0) as next_lock:
            assert next_lock.fencing_token > lock.fencing_token
            proxy.heal()
            stays_held(next_lock, locks, 1.0)
