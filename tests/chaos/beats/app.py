"""The app that all beats under test run: its schedule, as of one of two versions of the code."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta

from celery import Celery
from celery.schedules import crontab

PERIODS = {"half": 0.5, "one": 1.0, "two": 2.0, "five": 5.0}
#: What each version of the code has; a rolling deploy goes from the first to the second.
VERSIONS = {"1": ("half", "one", "five", "minute"), "2": ("half", "two", "five", "minute")}

#: So many seconds is this host's wall clock ahead.
SKEW_SECONDS = float(os.environ.get("BEATS_SKEW") or 0)

if SKEW_SECONDS:
    _real_time = time.time
    time.time = lambda: _real_time() + SKEW_SECONDS


class SkewedCelery(Celery):
    """Its schedules and beats go by this host's clock, as by the system's where that is wrong."""

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=SKEW_SECONDS)


app = SkewedCelery("beats", broker=os.environ.get("BEATS_BROKER", "memory://"))
app.conf.update(
    task_ignore_result=True,
    task_default_queue=os.environ.get("BEATS_LANE", "beats"),
    broker_connection_timeout=1.0,
    beat_schedule={
        name: {"task": f"beats.{name}", "schedule": PERIODS.get(name) or crontab()}
        for name in VERSIONS[os.environ.get("BEATS_VERSION", "1")]
    },
    etcdlock_endpoints=os.environ.get("BEATS_STORE", "memory://"),
    etcdlock_prefix=f"/beats/{os.environ.get('BEATS_LANE', 'beats')}/",
    etcdlock_ttl=int(os.environ.get("BEATS_TTL", "3")),
    etcdlock_timeout=1.0,
)
if os.environ.get("BEATS_REDBEAT"):
    app.conf.update(
        redbeat_redis_url=os.environ["BEATS_STORE"],
        redbeat_lock_timeout=int(os.environ.get("BEATS_TTL", "3")),
        redbeat_key_prefix=f"redbeat-{os.environ.get('BEATS_LANE', 'beats')}:",
    )
