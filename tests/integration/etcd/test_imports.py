"""A pool's child must not be forked while a thread of the MainProcess imports: so its threads import nothing."""

from __future__ import annotations

import subprocess
import sys

from tests.documented import ROOT
from tests.etcd_server import EtcdServer

CHECK = """
import sys
import celery.app.amqp  # which a worker has
from celery import Celery
from celery_etcdlock import EtcdLocks
from celery_etcdlock.wiring import import_for_threads, open_inspector

app = Celery("imports", broker="memory://")
app.conf.etcdlock_endpoints = sys.argv[1]
locks = EtcdLocks.from_app(app)
locks.manager
import_for_threads(locks.settings)
before = set(sys.modules)
with locks.lock("a"):
    inspector = open_inspector(locks.settings)
    inspector.close()
locks.close()
# A worker has all of Celery by then.
print(sorted(name for name in set(sys.modules) - before if not name.startswith(("celery.", "kombu."))))
"""


def test_threads_import_nothing(etcd: EtcdServer) -> None:
    endpoint = etcd.endpoint.replace("127.0.0.1", "localhost")
    run = subprocess.run(
        [sys.executable, "-c", CHECK, endpoint], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


def test_a_celery_command_imports_next_to_nothing_of_ours() -> None:
    count = "print(sum(name.startswith('celery_etcdlock') for name in sys.modules))"
    code = f"import sys, celery.bin.celery, celery_etcdlock.cli; {count}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    assert int(run.stdout) <= 8
