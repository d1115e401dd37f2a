"""A wrong configuration ends a command in one line; an error of somebody else's keeps its traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

APP = """
from celery import Celery, bootsteps
from celery.exceptions import ImproperlyConfigured
from celery_etcdlock import singleton_task

class Theirs(bootsteps.Step):
    def __init__(self, worker, **options):
        raise ImproperlyConfigured("of their own")

app = Celery("proj", broker="memory://")
app.conf.beat_scheduler = "celery_etcdlock.beat:EtcdScheduler"
{lines}

@singleton_task(app=app)
def task(): ...
"""
TTL = "app.conf.update(etcdlock_ttl=5, etcdlock_timeout=9)"
LISTENER = "app.conf.etcdlock_listeners = ['no.such']"


@pytest.mark.parametrize(
    ("command", "lines", "says"),
    [
        ("worker -P solo", TTL, "Error: etcdlock_timeout (9 s) must be less than etcdlock_ttl (5 s)"),
        ("beat", TTL, "Error: etcdlock_timeout (9 s) must be less than etcdlock_ttl (5 s)"),
        ("beat", LISTENER, "Error: etcdlock_listeners: 'no.such' can't be imported"),
        ("worker -P solo", "app.steps['worker'].add(Theirs)", "Traceback"),
    ],
    ids=["worker", "beat", "beat's listener", "theirs"],
)
def test_it_ends_in_one_line(tmp_path: Path, command: str, lines: str, says: str) -> None:
    (tmp_path / "proj.py").write_text(APP.format(lines=lines))
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "celery", "-A", "proj", *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path[1:]), "C_FORCE_ROOT": "1"},
    )
    assert says in ran.stderr
    assert ran.returncode == (1 if says == "Traceback" else 2)
    assert ("Traceback" in ran.stderr) == (says == "Traceback")
    assert says == "Traceback" or len(ran.stderr.splitlines()) == 1, ran.stderr
