"""What celery-etcdlock adds: memory of a worker's child, and time to import."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import defaultdict
from statistics import median

from benchmarks.bench import Bench
from benchmarks.places import ROOT, environment
from benchmarks.result import Cell, Result
from benchmarks.rounds import rotated, spread
from benchmarks.servers import etcd_server, redis_server
from benchmarks.workers import running_worker

__all__ = ["run"]

COLUMNS = {
    "what": "what",
    "value": "value",
    "unit": "unit",
    "added": "added",
    "in_all": "in all",
    "spread_percent": "spread %",
}
SETTLING_TASKS = 50
LOCKED_TASKS = 300

WITHOUT = "worker start: Celery's own imports"
WITH = "worker start: with celery_etcdlock and its etcd client"
COMMANDS = "import celery_etcdlock and its commands, by its own clock: each celery command"
PACKAGE = "from celery_etcdlock import singleton_task, after that: each app with locked tasks"
CLIENT = "its etcd client (hpack, protobuf), by its own clock"

ETCD_CLIENT = "import celery_etcdlock.etcd.client, celery_etcdlock.etcd.sockets, celery_etcdlock.etcd.etcd_store"

# What `celery worker` with Redis imports anyway, so that a module that both need isn't counted as ours.
CELERY_IMPORTS = """
import celery.bin.celery, celery.bin.worker, celery.apps.worker, celery.worker.worker, celery.worker.consumer
import celery.concurrency.prefork, celery.backends.redis, celery.events.dispatcher, celery.app.trace
import kombu.transport.redis
"""
# The celery command imports the commands of whatever is installed, ours too: here as if it weren't.
WITHOUT_COMMANDS = """
import importlib.metadata as metadata
found = metadata.entry_points
metadata.entry_points = lambda **wanted: () if wanted.get("group") == "celery.commands" else found(**wanted)
"""
TIMED_IMPORTS = (
    "import sys, time"
    + WITHOUT_COMMANDS
    + CELERY_IMPORTS
    + """
before, started = len(sys.modules), time.perf_counter()
import celery_etcdlock.cli
commands = time.perf_counter()
from celery_etcdlock import singleton_task
imported, modules = time.perf_counter(), len(sys.modules)
"""
    + ETCD_CLIENT
    + """
lazy = time.perf_counter()
times = [(commands - started) * 1e3, (imported - commands) * 1e3, (lazy - imported) * 1e3]
print([*times, modules - before, len(sys.modules) - modules])
"""
)


def run(bench: Bench) -> Result:
    result = Result((__doc__ or "").strip(), COLUMNS)
    _memory(bench, result)
    _imports(bench, result)
    return result


def _memory(bench: Bench, result: Result) -> None:
    starts = bench.scaled(full=3, quick=1)
    stages = ("without celery-etcdlock", "plain tasks only", "first locked task", f"{LOCKED_TASKS} locked tasks")
    rss: dict[str, list[float]] = defaultdict(list)
    private: dict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as running:
        etcd = running.enter_context(etcd_server(bench.scratch))
        redis = running.enter_context(redis_server(bench.scratch))
        for start in range(starts):
            bench.say(f"memory: workers {start + 1} of {starts}")
            seen = []
            with running_worker("plain", 1, redis, etcd, bench.scratch) as worker:
                worker.wait_ready()
                for number in range(SETTLING_TASKS):
                    worker.call("plain", number)
                seen.append(worker.call("memory"))
            with running_worker("locked", 1, redis, etcd, bench.scratch) as worker:
                worker.wait_ready()
                for number in range(SETTLING_TASKS):
                    worker.call("plain", number)
                seen.append(worker.call("memory"))
                worker.call("locked", 0)
                seen.append(worker.call("memory"))
                for number in range(LOCKED_TASKS):
                    worker.call("locked", number)
                seen.append(worker.call("memory"))
            for stage, memory in zip(stages, seen, strict=True):
                rss[stage].append(memory["rss"] / 1024)
                private[stage].append(memory["private"] / 1024)
    for kind, figures in (("RSS", rss), ("private", private)):
        without, plain = figures[stages[0]], figures[stages[1]]
        for stage in stages:
            added = median(now - then for now, then in zip(figures[stage], plain, strict=True))
            result.rows.append(
                {
                    "what": f"child's {kind}: {stage}",
                    "value": median(figures[stage]),
                    "unit": "MiB",
                    "added": added if stage not in stages[:2] else None,
                    "in_all": median(figures[stage]) - median(without) if stage != stages[0] else None,
                    "spread_percent": spread(figures[stage]),
                }
            )
    result.notes += [
        f"memory: medians of {starts} worker starts, -c 1; after {SETTLING_TASKS} plain tasks, then in the same child",
        '"added": to the same child after plain tasks; "in all": to the same app without celery-etcdlock',
        "private: what the child shares with no other process",
    ]
    result.rounds["memory_mib"] = {"rss": dict(rss), "private": dict(private)}


def _imports(bench: Bench, result: Result) -> None:
    rounds = bench.scaled(full=15, quick=2)
    walls: dict[str, list[float]] = {WITHOUT: [], WITH: []}
    codes = {
        WITHOUT: WITHOUT_COMMANDS + CELERY_IMPORTS,
        WITH: CELERY_IMPORTS + "from celery_etcdlock import singleton_task\n" + ETCD_CLIENT,
    }
    commands, ours, lazy, modules = [], [], [], (0, 0)
    _python(TIMED_IMPORTS)  # writes the .pyc files
    for number in range(rounds):
        for label in rotated(list(codes), number):
            started = time.perf_counter()
            _python(codes[label])
            walls[label].append((time.perf_counter() - started) * 1e3)
        at_command, at_start, at_lock, *counts = json.loads(_python(TIMED_IMPORTS))
        commands.append(at_command)
        ours.append(at_start)
        lazy.append(at_lock)
        modules = (int(counts[0]), int(counts[1]))
        if (number + 1) % 5 == 0 or number + 1 == rounds:
            bench.say(f"imports: round {number + 1} of {rounds}")
    for label, values in walls.items():
        added = median(now - then for now, then in zip(values, walls[WITHOUT], strict=True)) if label == WITH else None
        row: dict[str, Cell] = {"what": label, "value": median(values), "unit": "ms", "in_all": added}
        result.rows.append(row | {"spread_percent": spread(values)})
    for label, values in ((COMMANDS, commands), (PACKAGE, ours), (CLIENT, lazy)):
        row = {"what": label, "value": median(values), "unit": "ms", "added": median(values)}
        result.rows.append(row | {"spread_percent": spread(values)})
    result.notes += [
        f"imports: medians of {rounds} fresh interpreters in turn, on top of what a worker with Redis imports anyway",
        f"celery_etcdlock with singleton_task brings {modules[0]} modules, its etcd client {modules[1]} more",
        "with: its commands, too, which the celery command imports wherever celery-etcdlock is installed",
        "a worker's MainProcess imports both at its start, other processes the client at their first lock",
    ]
    result.rounds["imports_ms"] = {"wall": walls, "commands": commands, "singleton_task": ours, "etcd_client": lazy}


def _python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True).stdout
