"""``celery etcdlock doctor``: what it finds, and that it says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery

from celery_etcdlock import EtcdLocks
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.locking.lock import Lock
from tests.etcd_server import EtcdServer, free_ports, running_etcd
from tests.integration.cli.conftest import Ran, run_on


def check_results(ran: Ran, level: str) -> dict[str, dict[str, Any]]:
    return {finding["subject"].split()[0]: finding for finding in ran.json if finding["level"] == level}


def test_a_working_etcd_is_fine_but_for_what_this_one_is(app: Celery) -> None:
    """Rule 21."""
    ran = run_on(app, "doctor", "--json")
    assert ran.code == 0
    assert {"settings", "endpoint", "probe", "database", "clock"} <= check_results(ran, "ok").keys()
    warnings = check_results(ran, "warning")
    assert "no worker was ever started with this prefix" in warnings["locks"]["text"]
    assert "run three" in warnings["cluster"]["remedy"]
    assert "authentication is off" in warnings["login"]["text"]
    assert "0 broken" in run_on(app, "doctor").out


def test_an_endpoint_that_is_away_is_named(new_app: Callable[..., Celery], etcd: EtcdServer) -> None:
    away = f"127.0.0.1:{free_ports(1)[0]}"
    ran = run_on(new_app(etcdlock_endpoints=[away, etcd.endpoint], etcdlock_timeout=1), "doctor", "--json")
    assert ran.code == 1
    assert away in check_results(ran, "broken")["endpoint"]["subject"]
    assert "probe" in check_results(ran, "ok")
    alone = run_on(new_app(etcdlock_endpoints=[away], etcdlock_timeout=1), "doctor", "--json")
    assert (alone.code, "nothing more can be checked" in alone.out) == (1, True)


def test_endpoints_of_two_clusters_are_broken(new_app: Callable[..., Celery], etcd: EtcdServer) -> None:
    with running_etcd(fsync=False) as other:
        ran = run_on(new_app(etcdlock_endpoints=[etcd.endpoint, other.endpoint]), "doctor", "--json")
    assert "2 different clusters" in check_results(ran, "broken")["endpoints"]["text"]


def test_locks_of_another_broker_and_keys_without_a_lease_are_named(app: Celery, etcd: EtcdServer) -> None:
    """Rule 19."""
    locks = EtcdLocks.from_app(app)
    foreign = Record(Delivery("id"), "t", "h", 1, 1.0, broker="another")
    lock = locks.acquire("theirs", foreign, ttl_seconds=3)
    assert isinstance(lock, Lock)
    client = EtcdClient(etcd.endpoint)
    request = messages.PutRequest(key=f"{locks.settings.prefix}v1/stuck/t".encode(), value=b"{}")
    client.call("/etcdserverpb.KV/Put", request.SerializeToString(), 5.0)
    ran = run_on(app, "doctor")
    assert "1 of them belong to tasks of another broker, such as theirs" in ran.out
    assert "1 stand for ever, without a lease, such as stuck" in ran.out
    assert ran.code == 1
    assert run_on(app, "release", "stuck", "--force", "--yes").code == 0
    locks.manager.release(lock)


def test_a_user_without_permission_is_told_which_is_missing(new_app: Callable[..., Celery]) -> None:
    with running_etcd(fsync=False) as server:
        _add_users(server)
        app = new_app(etcdlock_endpoints=server.endpoint, etcdlock_username="poor", etcdlock_password="poor-secret")
        ran = run_on(app, "doctor", "--json")
        broken = check_results(ran, "broken")
        prefix = f"/celery-etcdlock/{app.main}/"
        assert ran.code == 1
        assert broken["permissions"]["remedy"] == (
            f"etcdctl role grant-permission reader --prefix=true readwrite {prefix}"
        )
        assert "no readwrite on" in broken["permissions"]["text"]
        assert "can't" in broken["probe"]["text"]
        assert "poor-secret" not in ran.out + ran.err
        wrong = new_app(etcdlock_endpoints=server.endpoint, etcdlock_username="poor", etcdlock_password="wrong")
        assert "etcdlock_password" in run_on(wrong, "doctor").out


def _add_users(server: EtcdServer) -> None:
    client = EtcdClient(server.endpoint)

    def call(method: str, request: Any) -> None:
        client.call(f"/etcdserverpb.Auth/{method}", request.SerializeToString(), 5.0)

    for user in ("root", "poor"):
        call("UserAdd", messages.AuthUserAddRequest(name=user, password=f"{user}-secret"))
    for role in ("root", "reader"):
        call("RoleAdd", messages.AuthRoleAddRequest(name=role))
    permission = messages.Permission(permType=messages.Permission.READ, key=b"/celery-etcdlock/", range_end=b"/d")
    call("RoleGrantPermission", messages.AuthRoleGrantPermissionRequest(name="reader", perm=permission))
    call("UserGrantRole", messages.AuthUserGrantRoleRequest(user="root", role="root"))
    call("UserGrantRole", messages.AuthUserGrantRoleRequest(user="poor", role="reader"))
    call("AuthEnable", messages.AuthEnableRequest())
