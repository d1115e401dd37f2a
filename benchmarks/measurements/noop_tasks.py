"""No-op tasks a second on a prefork worker with two children: plain, and each under a lock of its own."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from statistics import median

from benchmarks.bench import Bench
from benchmarks.cpu_time import children_of, cpu_seconds
from benchmarks.result import Cell, Goal, Result
from benchmarks.rounds import ratio, rotated, spread
from benchmarks.servers import etcd_server, redis_server
from benchmarks.workers import running_worker

__all__ = ["run"]

TASKS = {"plain": "plain task", "locked": "locked task, all keys distinct"}
CONCURRENCY = 2
COLUMNS = {
    "task": "task",
    "rate": "tasks/s",
    "spread_percent": "spread %",
    "ratio": "of plain",
    "main": "CPU us a task: main",
    "children": "children",
    "etcd": "etcd",
    "redis": "redis",
}


def run(bench: Bench) -> Result:
    rounds, count = bench.scaled(full=9, quick=3), bench.scaled(full=2000, quick=500)
    rates: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with contextlib.ExitStack() as running:
        bench.say("starting etcd, Redis and the worker")
        etcd = running.enter_context(etcd_server(bench.scratch))
        redis = running.enter_context(redis_server(bench.scratch))
        worker = running.enter_context(running_worker("locked", CONCURRENCY, redis, etcd, bench.scratch))
        processes = {
            "main": [worker.pid],
            "children": children_of(worker.pid),
            "etcd": list(etcd.pids),
            "redis": list(redis.pids),
        }
        for task in TASKS:
            bench.say(f"warming up: {task}")
            worker.tasks_a_second(task, 300)
        for number in range(rounds):
            for task in rotated(list(TASKS), number):
                before = {part: cpu_seconds(*pids) for part, pids in processes.items()}
                rates[task].append(worker.tasks_a_second(task, count))
                for part, pids in processes.items():
                    spent, earlier = cpu_seconds(*pids), before[part]
                    if spent is not None and earlier is not None:
                        costs[task][part].append((spent - earlier) / count * 1e6)
            latest = ", ".join(f"{task} {rates[task][-1]:,.0f}/s" for task in TASKS)
            bench.say(f"round {number + 1} of {rounds}: {latest}")
    result = Result((__doc__ or "").strip(), COLUMNS)
    for task, label in TASKS.items():
        row: dict[str, Cell] = {
            "task": label,
            "rate": median(rates[task]),
            "spread_percent": spread(rates[task]),
            "ratio": ratio(rates[task], rates["plain"]),
        }
        result.rows.append(row | {part: median(of) for part, of in costs[task].items()})
    kept = ratio(rates["locked"], rates["plain"])
    result.goals = [Goal("locked tasks at least 0.6 of the plain tasks a second", kept, at_least=0.6)]
    result.notes = [
        f"{rounds} rounds of {count} tasks each, in turn, on one worker (-c {CONCURRENCY}); results go to Redis",
        "from the worker's first message to the last result; all results were checked to be SUCCESS",
        "Redis and etcd share the worker's cores; CPU of Redis includes the sending of the messages",
    ]
    result.rounds = {task: {"tasks_a_second": rates[task], "cpu_us_a_task": dict(costs[task])} for task in TASKS}
    return result
