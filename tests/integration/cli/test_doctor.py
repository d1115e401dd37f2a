"""``celery etcdlock doctor``: what it finds, and that it says what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from celery import Celery

from celery_etcdlock import EtcdLocks, LockUnavailable
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.roles import role_commands
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.locking.lock import Lock
from tests.etcd_server import EtcdServer, free_ports, running_etcd
from tests.integration.cli.conftest import Ran, run_on

#: One that may read what is elsewhere.
POOR = "etcdctl role grant-permission reader --prefix=true read /elsewhere/"


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
    lock = locks.manager.acquire("theirs", foreign, ttl_seconds=3)
    assert isinstance(lock, Lock)
    client = EtcdClient(etcd.endpoint)
    request = messages.PutRequest(key=f"{locks.settings.prefix}v1/stuck/t".encode(), value=b"{}")
    client.call("/etcdserverpb.KV/Put", request.SerializeToString(), 5.0)
    ran = run_on(app, "doctor")
    assert "1 of them belong to tasks of another broker, such as theirs" in ran.out
    assert "1 have no lease and never expire, such as stuck" in ran.out
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
        refused = run_on(wrong, "doctor")
        assert "etcdlock_password" in refused.out
        assert "answered, but refused the login" in refused.out
        assert "no endpoint answered" not in refused.out
        assert f"celery-locks --prefix=true readwrite /celery-etcdlock/{wrong.main}/" in refused.out


def test_the_least_roles_lock_and_look_and_no_more(new_app: Callable[..., Celery]) -> None:
    """What docs/operating.md and ``doctor`` tell to grant: run as they say it, by etcd's own calls."""
    with running_etcd(fsync=False) as server:
        prefix = f"/celery-etcdlock/{new_app().main}/"
        grants = [command for command in role_commands(prefix) if "grant-permission" in command]
        _add_users(server, dict(zip(("worker", "look"), grants, strict=True)))

        def of(user: str, prefix: str = prefix) -> Celery:
            login = {"etcdlock_username": user, "etcdlock_password": f"{user}-secret"}
            return new_app(etcdlock_endpoints=server.endpoint, etcdlock_prefix=prefix, **login)

        worker, look = of("worker"), of("look")
        assert run_on(worker, "doctor").code == 0
        held = EtcdLocks.from_app(worker).lock("a")
        with held:
            owner = run_on(look, "ls", "--json").json[0]["owners"][0]
            assert owner["ttl_seconds"] > 0
            assert run_on(look, "show", "a").code == 0
            for how in (["--force"], ["--timeout", "0"]):
                refused = run_on(look, "release", "a", "--yes", *how)
                assert (refused.code, "permission denied" in refused.err) == (3, True)
            held.check()
            assert run_on(worker, "release", "a", "--yes", "--timeout", "0").code == 1
        ran = run_on(look, "doctor", "--json")
        assert (ran.code, "may look, and not lock" in check_results(ran, "warning")["permissions"]["text"]) == (0, True)
        with pytest.raises(LockUnavailable, match="permission denied"):
            EtcdLocks.from_app(look).lock("b").acquire()
        with pytest.raises(LockUnavailable, match="permission denied"):
            EtcdLocks.from_app(of("worker", "/celery-etcdlock/other/")).lock("b").acquire()


def _add_users(server: EtcdServer, granted: Mapping[str, str] = MappingProxyType({"poor": POOR})) -> None:
    """Root, and users with a role each that ``granted`` says by an etcdctl command. Then logins are needed."""
    client = EtcdClient(server.endpoint)

    def call(method: str, request: Any) -> None:
        client.call(f"/etcdserverpb.Auth/{method}", request.SerializeToString(), 5.0)

    def add(user: str, role: str) -> None:
        call("UserAdd", messages.AuthUserAddRequest(name=user, password=f"{user}-secret"))
        call("RoleAdd", messages.AuthRoleAddRequest(name=role))
        call("UserGrantRole", messages.AuthUserGrantRoleRequest(user=user, role=role))

    add("root", "root")
    for user, command in granted.items():
        *_, role, with_prefix, kind, start = command.split()
        assert with_prefix == "--prefix=true"
        add(user, role)
        end = start[:-1].encode() + bytes([start.encode()[-1] + 1])
        of_kind = messages.Permission.READ if kind == "read" else messages.Permission.READWRITE
        permission = messages.Permission(permType=of_kind, key=start.encode(), range_end=end)
        call("RoleGrantPermission", messages.AuthRoleGrantPermissionRequest(name=role, perm=permission))
    call("AuthEnable", messages.AuthEnableRequest())
