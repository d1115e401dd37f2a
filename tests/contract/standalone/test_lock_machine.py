"""The state machine of lock objects, on both stores, and under gevent, where its threads are greenlets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from celery_etcdlock import EtcdLocks
from tests.contract.standalone.lock_machine import LockMachine, settings_of
from tests.etcd_server import EtcdServer

# Twenty steps can be read as they are, and to shrink them would take minutes.
SETTINGS = settings(
    max_examples=12,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    print_blob=True,
)


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_and_tasks(locks: EtcdLocks, new_locks: Callable[[], EtcdLocks]) -> None:
    others = new_locks()
    run_state_machine_as_test(settings_of(LockMachine, new_clients=lambda: (locks, others)), settings=SETTINGS)


@pytest.mark.timeout(300)
def test_greenlets(etcd: EtcdServer) -> None:
    root = Path(__file__).parents[3]
    script = [sys.executable, "-m", "tests.contract.standalone.greenlets_check", etcd.endpoint]
    done = subprocess.run(script, cwd=root, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["ok"]
