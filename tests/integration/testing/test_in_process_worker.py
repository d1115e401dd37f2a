"""A worker in a process that goes on, as people's own tests start it, leaves nothing behind that hears of the next."""

from __future__ import annotations

import threading
from typing import Any

import celery.signals
from celery import Celery
from celery.contrib.testing.worker import start_worker

from celery_etcdlock import singleton_task
from celery_etcdlock.worker.revoke_signal import revoked
from tests.etcd_server import EtcdServer
from tests.waiting import wait_for

SIGNALS = [getattr(celery.signals, name) for name in celery.signals.__all__] + [revoked]


def receivers() -> dict[str, int]:
    return {str(signal.name): len(signal.receivers) for signal in SIGNALS}


def ours() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("celery-etcdlock-cleanup")}


def run_a_worker(etcd: EtcdServer, name: str) -> dict[str, int]:
    """The receivers while it runs."""
    app = Celery(name, broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(etcdlock_endpoints=etcd.endpoint, task_default_queue=name, worker_hijack_root_logger=False)

    @singleton_task(app=app, name="task", shared=False, lock="until_executed", on_conflict="wait")
    def task() -> None: ...

    with start_worker(app, perform_ping_check=False, shutdown_timeout=30):
        assert task.delay().get(timeout=20) is None
        expired: Any = task.apply_async(expires=-1)
        wait_for(lambda: expired.state == "REVOKED", "it has expired")
        return receivers()


def test_each_leaves_what_it_found(etcd: EtcdServer) -> None:
    run_a_worker(etcd, "first")  # what is connected once for the process
    before, meanwhile = receivers(), run_a_worker(etcd, "second")
    assert meanwhile != before, "no step connects anything"
    assert receivers() == before
    wait_for(lambda: not ours(), "the clean-up has ended")
