"""Forks and gevent, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_etcdlock.etcd import sockets
from tests.etcd_server import EtcdServer, ServerTls, running_etcd

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.fixture(scope="module")
def tls_etcd(authority: Any) -> Iterator[EtcdServer]:
    cert, key = authority.issue("server")
    with running_etcd(tls=ServerTls(cert, key)) as server:
        yield server


def run(script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, HERE / script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "ok\n"


def test_fork(etcd: EtcdServer) -> None:
    run("fork_check.py", etcd.endpoint)


def test_fork_under_tls(tls_etcd: EtcdServer, authority: Any) -> None:
    run("fork_check.py", tls_etcd.endpoint, authority.ca_cert)


def test_gevent(etcd: EtcdServer) -> None:
    run("gevent_check.py", etcd.endpoint)


def test_gevent_under_tls(tls_etcd: EtcdServer, authority: Any) -> None:
    run("gevent_check.py", tls_etcd.endpoint, authority.ca_cert)


def test_gevent_is_never_imported_by_us() -> None:
    code = (
        "import sys; from celery_etcdlock.etcd import sockets, client; sockets.native(); sockets.patched();"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('gevent', 'grpc')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_flavours_are_the_same_without_gevent() -> None:
    native, patched = sockets.native(), sockets.patched()
    assert (native.socket_class, native.sleep) == (patched.socket_class, patched.sleep)
