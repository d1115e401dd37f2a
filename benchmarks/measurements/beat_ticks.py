"""What a tick costs the beat that sends it, with few entries and with many, a hundred of them due at once."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from statistics import median

from benchmarks.bench import Bench
from benchmarks.environments import NotInstalled, python_environment
from benchmarks.places import ROOT
from benchmarks.result import Goal, Result
from benchmarks.rounds import ratio, rotated, spread
from benchmarks.servers import etcd_server, redis_server

__all__ = ["run"]

COLUMNS = {
    "scheduler": "scheduler",
    "entries": "entries",
    "ms_each": "ms a tick",
    "spread_percent": "spread %",
    "cpu_us_each": "CPU us a tick",
    "ratio": "time / PersistentScheduler",
    "start_seconds": "s to the first",
    "idle_percent": "CPU % with nothing due",
}
TIMEOUT_SECONDS = 300
#: How many entries are due at once.
DUE = 100


def _redbeat() -> str:
    return python_environment(
        "celery-redbeat", ["celery-redbeat==2.4.2", "celery[redis]"], imports="redbeat", pinned_as_ours=True
    )


CONTENDERS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("persistent", "celery.beat:PersistentScheduler", lambda: sys.executable),
    ("etcdlock", "celery_etcdlock.beat:EtcdScheduler", lambda: sys.executable),
    ("redbeat", "redbeat.RedBeatScheduler", _redbeat),
)


def run(bench: Bench) -> Result:
    rounds = bench.scaled(full=3, quick=1)
    sizes = (DUE, bench.scaled(full=10_000, quick=1000))
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    absent: dict[str, str] = {}
    with contextlib.ExitStack() as running:
        etcd = running.enter_context(etcd_server(bench.scratch))
        broker = running.enter_context(redis_server(bench.scratch))
        locks = running.enter_context(redis_server(bench.scratch, synced=True))
        environment = {"BENCH_BROKER": broker.endpoint, "BENCH_LOCKS": locks.endpoint, "BENCH_ETCD": etcd.endpoint}
        for number in range(rounds):
            for kind, label, python in rotated(CONTENDERS, number):
                for entries in sizes:
                    try:
                        interpreter = python()
                    except NotInstalled as reason:
                        absent[kind] = str(reason)
                        continue
                    with tempfile.TemporaryDirectory(dir=bench.scratch) as directory:
                        command = [interpreter, "-m", "benchmarks.peers.beat_ticks", kind, str(entries), str(DUE)]
                        ran = subprocess.run(
                            [*command, directory],
                            cwd=ROOT,
                            env={**os.environ, **environment},
                            capture_output=True,
                            text=True,
                            timeout=TIMEOUT_SECONDS,
                            check=False,
                        )
                    if ran.returncode:
                        raise RuntimeError(f"{label} failed: {ran.stderr[-1000:]}")
                    one = json.loads(ran.stdout.splitlines()[-1])
                    found.setdefault((kind, entries), []).append(one)
                    bench.say(
                        f"round {number + 1} of {rounds}: {label}, {entries} entries: {one['ms_each']:.2f} ms a tick"
                    )
    result = Result((__doc__ or "").strip(), COLUMNS)
    for entries in sizes:
        for kind, label, _python in CONTENDERS:
            if kind in absent:
                result.rows.append({"scheduler": label, "entries": entries, "not_measured": absent[kind]})
                continue
            of = found[kind, entries]
            each = {key: [one[key] for one in of] for key in of[0]}
            plain = [one["ms_each"] for one in found["persistent", entries]]
            result.rows.append(
                {"scheduler": label, "entries": entries}
                | {key: median(values) for key, values in each.items()}
                | {"spread_percent": spread(each["ms_each"]), "ratio": ratio(each["ms_each"], plain)}
            )
            result.rounds[f"{label}, {entries}"] = each
    if "redbeat" not in absent:
        entries = sizes[1]
        ours, theirs = ([one["ms_each"] for one in found[kind, entries]] for kind in ("etcdlock", "redbeat"))
        result.goals.append(
            Goal(f"ms a tick at most redbeat's with {entries} entries", ratio(ours, theirs), at_most=1.0)
        )
    result.notes = [
        f"{rounds} rounds in turn; {DUE} entries are due at once, and nobody consumes what is sent to Redis",
        "ours: a claim in etcd, synced to disk, before each message, and its confirmation with the next claim",
        "redbeat: its state to a Redis with AOF always; PersistentScheduler: a file, every three minutes",
    ]
    return result
