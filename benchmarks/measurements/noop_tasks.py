"""No-op tasks a second: prefork, threads and gevent workers; plain, and each under a lock of its own."""

from __future__ import annotations

import contextlib
import importlib.util
from collections import defaultdict
from statistics import median

from benchmarks.apps import APPS, LOCKED
from benchmarks.bench import Bench
from benchmarks.cpu_time import children_of, cpu_seconds
from benchmarks.environments import NotInstalled
from benchmarks.result import Cell, Goal, Result
from benchmarks.rounds import ratio, rotated, spread
from benchmarks.servers import etcd_server, redis_server
from benchmarks.workers import Worker, running_worker

__all__ = ["run"]

PLAIN = "plain"
#: The pools, their slots, and what of the plain task's rate a locked one is to reach.
POOLS = {"prefork": (2, 0.6), "threads": (50, 0.7), "gevent": (50, 0.7)}
GATED_AT_LEAST = 0.5
COLUMNS = {
    "task": "task",
    "pool": "pool",
    "rate": "tasks/s",
    "spread_percent": "spread %",
    "ratio": "of plain",
    "worker": "CPU us a task: worker",
    "etcd": "etcd",
    "redis": "redis",
}


def run(bench: Bench) -> Result:
    result = Result((__doc__ or "").strip(), COLUMNS)
    for pool, (slots, goal) in POOLS.items():
        _on_pool(bench, result, pool, slots, goal)
    result.notes += [
        "from the worker's first message to the last result; all results were checked to be SUCCESS",
        "Redis (broker and results), a second Redis with AOF always (their locks), etcd and the worker share the cores",
        "celery-singleton and celery-once take their lock in the caller, outside of this time: only its release is in "
        "it. The cookbook's and ours are taken and released in it. Theirs have neither renewal nor fencing",
    ]
    text = f"prefork, with the gate: at least {GATED_AT_LEAST:g} of the plain tasks"
    if importlib.util.find_spec("celery_etcdlock.worker.gate") is None:
        result.rows.append({"task": "celery-etcdlock with the gate", "not_measured": "this version has no gate yet"})
        result.goals.append(Goal(text, None, at_least=GATED_AT_LEAST))
    else:
        result.goals.append(Goal(text, result.goals[0].value, at_least=GATED_AT_LEAST))
        result.notes.append("the gate is on: it lets a first try pass to the pool, where its lock is taken")
    return result


def _on_pool(bench: Bench, result: Result, pool: str, slots: int, goal: float) -> None:
    rounds, count = bench.scaled(full=5, quick=1), bench.scaled(full=1000, quick=200)
    rates: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with contextlib.ExitStack() as running:
        bench.say(f"{pool}: starting servers")
        etcd = running.enter_context(etcd_server(bench.scratch))
        redis = running.enter_context(redis_server(bench.scratch))
        locks = running.enter_context(redis_server(bench.scratch, synced=True))
        workers: dict[str, Worker] = {}
        labels = {PLAIN: "plain task"}
        for app in APPS:
            bench.say(f"{pool}: starting {app.label}'s worker (the first time it is installed)")
            try:
                python = app.python()
            except NotInstalled as reason:
                result.rows.append({"task": app.label, "pool": pool, "not_measured": str(reason)})
                continue
            workers[app.module] = running.enter_context(
                running_worker(app.module, slots, redis, etcd, bench.scratch, pool=pool, python=python, locks=locks)
            )
            labels[app.module] = app.label
        for worker in workers.values():
            worker.wait_ready()
        workers[PLAIN] = workers[LOCKED.module]
        for task in labels:
            workers[task].tasks_a_second(task, 100)
        for number in range(rounds):
            for task in rotated(list(labels), number):
                pid = workers[task].pid
                processes = {
                    "worker": [pid, *children_of(pid)],
                    "etcd": list(etcd.pids),
                    "redis": [*redis.pids, *locks.pids],
                }
                before = {part: cpu_seconds(*pids) for part, pids in processes.items()}
                rates[task].append(workers[task].tasks_a_second(task, count))
                for part, pids in processes.items():
                    spent, earlier = cpu_seconds(*pids), before[part]
                    if spent is not None and earlier is not None:
                        costs[task][part].append((spent - earlier) / count * 1e6)
            latest = ", ".join(f"{task} {rates[task][-1]:,.0f}/s" for task in labels)
            bench.say(f"{pool}, round {number + 1} of {rounds}: {latest}")
        for worker in set(workers.values()):
            worker.ask_to_stop()
    for task, label in labels.items():
        row: dict[str, Cell] = {
            "task": label,
            "pool": f"{pool} -c {slots}",
            "rate": median(rates[task]),
            "spread_percent": spread(rates[task]),
            "ratio": ratio(rates[task], rates[PLAIN]),
        }
        result.rows.append(row | {part: median(of) for part, of in costs[task].items()})
    kept = ratio(rates[LOCKED.module], rates[PLAIN])
    result.goals.append(Goal(f"{pool}: locked tasks at least {goal:g} of the plain tasks a second", kept, goal))
    result.rounds[pool] = {task: {"tasks_a_second": rates[task], "cpu_us_a_task": dict(costs[task])} for task in labels}
    if pool == "prefork":
        result.notes.append(f"{rounds} rounds of {count} tasks each, in turn; one worker for each plug-in")
