"""A periodic job that never overlaps, though it takes longer than its period and two workers are there for it.

Beat fires it every second, it takes two and a half; the runs that would overlap are skipped, not queued up.
"""

from __future__ import annotations

import time

from celery import Celery

from celery_etcdlock import singleton_task
from examples.support import beat, expect, expect_no_overlap, inside, say, spans, wait_for, workers

SECONDS = 2.5
app = Celery("periodic")
app.conf.beat_schedule = {"report": {"task": "report", "schedule": 1.0}}


@singleton_task(app=app, name="report")
def report() -> None:
    with inside("report"):
        time.sleep(SECONDS)


def main() -> None:
    with workers("examples.periodic", "-c", "2") as both, beat("examples.periodic"):
        wait_for(lambda: sum(span.end is not None for span in spans("report")) >= 3, "three runs of the job")
        logs = "".join(worker.log.read_text() for worker in both)
    skipped = logs.count("not run: lock 'report' is held by")
    say(f"The job ran {len(spans('report'))} times and was skipped {skipped} times.")
    expect_no_overlap("report")
    expect(skipped >= 3, "runs that would have overlapped were skipped")
