"""A failover with django-celery-beat: what the database didn't learn, etcd knows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("django_beats.py")


def test_one_off_tasks_and_counts_survive_a_beat_that_wrote_nothing(tmp_path: Path) -> None:
    pytest.importorskip("django_celery_beat")
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=110, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    seen = json.loads(ran.stdout.splitlines()[-1])
    assert seen["unsynced"] == [0, True], "the database knew nothing of the run"
    assert seen["once_after_failover"] == 1
    assert seen["once_in_the_end"] == 2
    assert seen["often_in_database"] == seen["often"]
