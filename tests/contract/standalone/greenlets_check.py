"""Run in a process of its own, under gevent's monkey-patching: lock objects that greenlets share."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402

import gevent  # noqa: E402
from celery import Celery  # noqa: E402
from hypothesis import HealthCheck, Phase, settings  # noqa: E402
from hypothesis.stateful import run_state_machine_as_test  # noqa: E402

from celery_etcdlock import EtcdLocks  # noqa: E402
from tests.contract.standalone.lock_machine import LockMachine, settings_of  # noqa: E402
from tests.waiting import wait_for  # noqa: E402

endpoint = sys.argv[1]


def new_locks() -> EtcdLocks:
    app = Celery("greenlets", broker="memory://", set_as_current=False)
    app.conf.etcdlock_endpoints = endpoint
    apps.append(app)
    return EtcdLocks.from_app(app)


apps: list[Celery] = []
locks, others = new_locks(), new_locks()

# a gevent.Timeout ends a wait, and leaves nothing
shared = locks.lock("timeout", wait_timeout=None)
with others.lock("timeout") as held:
    for _ in range(2):
        try:
            with gevent.Timeout(0.1):
                shared.acquire()
        except gevent.Timeout:
            pass
    waiting = gevent.spawn(shared.acquire)
    wait_for(lambda: len(others.holders("timeout")) == 2, "one waits")
    waiting.kill()  # as a pool that shuts down
    wait_for(lambda: len(others.holders("timeout")) == 1, "no place is left")
    held.check()
with shared:
    pass

machine = settings_of(LockMachine, new_clients=lambda: (locks, others), with_tasks=False, with_forks=False)
run_state_machine_as_test(
    machine,
    settings=settings(
        max_examples=5,
        stateful_step_count=15,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    ),
)
for each in (locks, others):
    each.close()
print("ok")
