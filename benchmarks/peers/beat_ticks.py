"""One scheduler, many entries of which some are due at once: how long until the last is sent. Prints JSON.

python -m benchmarks.peers.beat_ticks persistent|etcdlock|redbeat ENTRIES DUE DIRECTORY
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime, timedelta, timezone

from celery import Celery
from celery.beat import Service

SCHEDULERS = {
    "persistent": "celery.beat:PersistentScheduler",
    "etcdlock": "celery_etcdlock.beat:EtcdScheduler",
    "redbeat": "redbeat.RedBeatScheduler",
}


PERIOD = timedelta(hours=1)
IDLE_SECONDS = 3.0


def main(kind: str, entries: int, due: int, directory: str) -> None:
    now = datetime.now(timezone.utc)
    # Each run has a state of its own in the stores.
    app = Celery(f"beat-{kind}-{entries}-{os.getpid()}", broker=f"redis://{os.environ['BENCH_BROKER']}/0")
    app.conf.update(
        task_ignore_result=True,
        task_default_queue=app.main,
        beat_schedule={
            f"entry-{number}": {"task": "t", "schedule": PERIOD, "last_run_at": now - PERIOD if number < due else now}
            for number in range(entries)
        },
        etcdlock_endpoints=os.environ["BENCH_ETCD"],
        redbeat_redis_url=f"redis://{os.environ['BENCH_LOCKS']}/0",
        redbeat_key_prefix=f"{app.main}:",
    )
    sent: list[float] = []
    cpu_at_first: list[float] = []
    send = app.amqp.send_task_message

    def counted(*args: object, **kwargs: object) -> object:
        result = send(*args, **kwargs)
        if not sent:
            cpu_at_first.append(time.process_time())
        sent.append(time.monotonic())
        return result

    app.amqp.send_task_message = counted
    began = time.monotonic()
    service = Service(
        app, scheduler_cls=SCHEDULERS[kind], schedule_filename=os.path.join(directory, app.main), max_interval=5
    )
    scheduler = service.scheduler
    if kind == "redbeat":
        # What its signal's receiver does when a beat starts.
        from redbeat.schedulers import acquire_distributed_beat_lock

        acquire_distributed_beat_lock(service)
    while len(sent) < due:
        interval = scheduler.tick()
        if interval and interval > 0:
            time.sleep(min(interval, 0.05))
    # From the first one on: what comes before it is done once in a beat's life.
    cpu = time.process_time() - cpu_at_first[0]
    elapsed = sent[due - 1] - sent[0]
    # With nothing due.
    idle_before = time.process_time()
    until = time.monotonic() + IDLE_SECONDS
    while time.monotonic() < until:
        interval = scheduler.tick()
        if interval and interval > 0:
            time.sleep(min(interval, until - time.monotonic()) if until > time.monotonic() else 0)
    print(
        json.dumps(
            {
                "ms_each": elapsed * 1e3 / (due - 1),
                "cpu_us_each": cpu * 1e6 / (due - 1),
                "start_seconds": sent[0] - began,
                "idle_percent": (time.process_time() - idle_before) / IDLE_SECONDS * 100,
            }
        ),
        flush=True,
    )
    scheduler.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
