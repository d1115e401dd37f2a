"""Real beats as processes: one at work, one that stands by, a handover, and what operators see of it.

``tests/chaos/beats`` has the faults. The TTL is long here, so that only a release can be the reason of a takeover.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_etcdlock import EtcdLocks
from celery_etcdlock.beat import EtcdScheduler
from celery_etcdlock.web.follower import Follower
from celery_etcdlock.wiring import open_inspector
from tests.chaos.beats.lane import Beat, Lane
from tests.etcd_server import EtcdServer, free_ports
from tests.integration.cli.conftest import run_on
from tests.redis_server import RedisServer
from tests.waiting import wait_for

_numbers = itertools.count()
TTL_SECONDS = 60


@pytest.fixture
def lane(etcd: EtcdServer, redis: RedisServer, tmp_path: Path) -> Iterator[Lane]:
    lane = Lane(
        f"real-beats{os.getpid()}x{next(_numbers)}",
        "celery-etcdlock",
        store_ports=[etcd.port],
        broker_url="redis://127.0.0.1:{port}/2",
        broker_port=redis.port,
        directory=tmp_path,
        ttl_seconds=TTL_SECONDS,
    )
    yield lane
    lane.close()


@pytest.fixture
def app(lane: Lane, etcd: EtcdServer) -> Iterator[Celery]:
    app = Celery("beats", broker=f"redis://127.0.0.1:{lane.broker_port}/2", set_as_current=False)
    app.conf.update(etcdlock_endpoints=etcd.endpoint, etcdlock_prefix=f"/beats/{lane.name}/")
    yield app
    EtcdLocks.from_app(app).close()


def said(beat: Beat, text: str) -> Callable[[], bool]:
    return lambda: text in beat.log.read_text()


def beat_of(app: Celery) -> dict[str, Any]:
    [lock] = run_on(app, "ls", "--json", "beat:*").json
    beat: dict[str, Any] = lock["beat"]
    return beat


def test_a_handover_and_what_is_seen_of_it(lane: Lane, app: Celery) -> None:
    first = lane.start_beat()
    lane.wait_for_arrival("half", 0.0)
    assert "nobody stands by" in run_on(app, "doctor").out
    second = lane.start_beat()
    wait_for(said(second, "standing by: beat is held by"), "the second stands by", 60)
    seen = beat_of(app)
    assert seen["at_work"]["pid"] == first.process.pid
    assert [one["pid"] for one in seen["standing_by"]] == [second.process.pid]
    assert seen["takeovers"] == 0
    entries = {one["entry"]: one for one in seen["entries"]}
    assert {"half", "one", "five", "minute"} <= entries.keys()
    assert entries["half"]["last"] <= time.time() + 1
    assert entries["half"]["next"] > entries["half"]["due"]
    text = run_on(app, "ls").out
    assert f":{first.process.pid} is at work for" in text
    assert f"standing by: {seen['standing_by'][0]['host']}:{second.process.pid}" in text
    assert "every 0.5 s" in text

    handed_over = time.time()
    first.end()
    taken_over = lane.wait_for_arrival("half", time.time(), 30.0)
    assert taken_over.at - handed_over < TTL_SECONDS / 2, "at once, not when the lease ends"
    assert "this beat has ended" in first.log.read_text()
    seen = beat_of(app)
    assert (seen["at_work"]["pid"], seen["takeovers"]) == (second.process.pid, 1)
    dues = [one.due for one in lane.arrivals if one.entry == "half"]
    assert len(set(dues)) == len(dues)
    assert all(dues)

    follower = Follower(open_inspector(EtcdLocks.from_app(app).settings), dict, {})
    follower.start()
    [shown] = wait_for(lambda: follower.state()["beats"], "the page shows the beat")
    assert shown["at_work"]["pid"] == second.process.pid
    follower.stop()

    second.end()
    ran = run_on(app, "doctor")
    assert ran.code == 1
    assert "none is at work: nothing is scheduled" in ran.out
    assert beat_of(app)["at_work"] is None
    assert "no beat is at work, nothing is scheduled" in run_on(app, "ls").out


def test_a_beat_that_starts_without_etcd_works_once_it_is_there(lane: Lane) -> None:
    [port] = free_ports(1)
    real, lane.store_ports = lane.store_ports, [port]
    beat = lane.start_beat()
    wait_for(said(beat, "etcd is unreachable, nothing is scheduled"), "it stands by and says so", 60)
    assert lane.arrivals == []
    [way] = beat.store_ways
    way.server_port = real[0]
    lane.wait_for_arrival("half", 0.0)


def test_beats_inside_of_workers(lane: Lane) -> None:
    """``worker -B``: its beat is a child process, which a worker that ends just terminates."""
    environment = {
        **os.environ,
        "BEATS_BROKER": lane.broker_url.format(port=lane.broker_port),
        "BEATS_STORE": f"127.0.0.1:{lane.store_ports[0]}",
        "BEATS_LANE": lane.name,
        "BEATS_TTL": str(TTL_SECONDS),
    }
    command = [sys.executable, "-m", "celery", "-A", "tests.chaos.beats.app", "worker", "-B", "-c", "1", "-l", "info"]
    command += ["--scheduler", "celery_etcdlock.beat:EtcdScheduler", "-Q", f"{lane.name}-none"]
    logs = [lane.directory / f"worker{number}.log" for number in range(2)]
    workers = []
    try:
        for number, log in enumerate(logs):
            files = ["-s", str(lane.directory / f"schedule{number}"), "-n", f"{lane.name}-{number}@here"]
            with log.open("w") as out:
                workers.append(subprocess.Popen([*command, *files], env=environment, stdout=out, stderr=out))
            words = ("this beat is at work", "standing by: beat is held by")[number]
            wait_for(lambda log=log, words=words: words in log.read_text(), f"worker {number}: {words}", 60)  # type: ignore[misc]
        lane.wait_for_arrival("half", 0.0)
        workers[0].terminate()
        workers[0].wait(60)
        lane.wait_for_arrival("half", time.time(), TTL_SECONDS / 2)
        wait_for(lambda: "this beat is at work" in logs[1].read_text(), "the other has taken over")
        workers[1].terminate()
        workers[1].wait(60)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
                worker.wait(60)


def test_the_short_name() -> None:
    from celery.utils.imports import load_extension_class_names, symbol_by_name

    aliases = dict(load_extension_class_names("celery.beat_schedulers"))
    assert symbol_by_name("etcdlock", aliases=aliases) is EtcdScheduler


def test_a_class_that_is_no_scheduler_is_refused_before_anything_starts(lane: Lane, tmp_path: Path) -> None:
    code = "from tests.chaos.beats.app import app; app.conf.etcdlock_beat_scheduler = 'celery.beat:ScheduleEntry'; "
    code += "app.Beat(scheduler='celery_etcdlock.beat:EtcdScheduler', pidfile=None).run()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode != 0
    assert "etcdlock_beat_scheduler: 'celery.beat:ScheduleEntry' is not a scheduler" in ran.stderr
