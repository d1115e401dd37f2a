"""What a call costs whose key nobody holds: published without a lock, and with one, beside other plug-ins on Redis."""

from __future__ import annotations

import contextlib
from statistics import median

from benchmarks.apps import LOCKED, ONCE, PLAIN, SINGLETON, App
from benchmarks.bench import Bench
from benchmarks.clients import Clients, Run, connect
from benchmarks.environments import NotInstalled
from benchmarks.result import Goal, Result
from benchmarks.rounds import percentile, ratio, rotated, spread
from benchmarks.servers import etcd_server, redis_server
from benchmarks.workers import surroundings

__all__ = ["run"]

COLUMNS = {
    "app": "plug-in",
    "store": "its lock store",
    "p50_ms": "p50 ms a call",
    "p99_ms": "p99 ms",
    "spread_percent": "spread of p50 %",
    "cpu_us": "caller's CPU us a call",
    "ratio": "p50 / without a lock",
}
CALLERS: tuple[tuple[App, str], ...] = (
    (PLAIN, "none"),
    (LOCKED, "etcd, synced"),
    (SINGLETON, "Redis, AOF always"),
    (ONCE, "Redis, AOF always"),
)


def run(bench: Bench) -> Result:
    rounds, calls = bench.scaled(full=7, quick=3), bench.scaled(full=1000, quick=200)
    runs: dict[str, list[Run]] = {}
    with contextlib.ExitStack() as running:
        etcd = running.enter_context(etcd_server(bench.scratch))
        broker = running.enter_context(redis_server(bench.scratch))
        locks = running.enter_context(redis_server(bench.scratch, synced=True))
        clients = Clients()
        for app, _ in CALLERS:
            bench.say(f"{app.label}: starting its caller (the first time it is installed)")
            try:
                command = [app.python(), "-m", "benchmarks.peers.enqueue", app.module, "1"]
                extra = surroundings(broker, etcd, locks)
                clients.running.append(running.enter_context(connect(app.label, command, bench.scratch, extra)))
            except NotInstalled as reason:
                clients.absent[app.label] = str(reason)
        for client in clients.running:
            client.run(50)
        for number in range(rounds):
            for client in rotated(clients.running, number):
                runs.setdefault(client.name, []).append(client.run(calls))
            latest = ", ".join(f"{name} {median(of[-1].microseconds) / 1e3:.2f} ms" for name, of in runs.items())
            bench.say(f"round {number + 1} of {rounds}: {latest}")
    result = Result((__doc__ or "").strip(), COLUMNS)
    p50s = {name: [median(run.microseconds) / 1e3 for run in of] for name, of in runs.items()}
    for app, store in CALLERS:
        if app.label not in runs:
            result.rows.append({"app": app.label, "store": store, "not_measured": clients.absent[app.label]})
            continue
        of = runs[app.label]
        result.rows.append(
            {
                "app": app.label,
                "store": store,
                "p50_ms": median(p50s[app.label]),
                "p99_ms": median(percentile(run.microseconds, 99) / 1e3 for run in of),
                "spread_percent": spread(p50s[app.label]),
                "cpu_us": median(run.cpu_each for run in of),
                "ratio": ratio(p50s[app.label], p50s[PLAIN.label]),
            }
        )
    for app in (SINGLETON, ONCE):
        against = ratio(p50s[LOCKED.label], p50s[app.label]) if app.label in p50s else None
        result.goals.append(Goal(f"p50 at most that of {app.label} (ours / its)", against, at_most=1.0))
    result.notes = [
        f"{rounds} rounds of {calls} calls, in turn, one caller, every key new; nobody consumes what is published",
        "ours: lock='until_executed'; one transaction, which etcd syncs to disk, then the message to Redis",
    ]
    result.rounds = {name: {"p50_ms": p50s[name]} for name in runs}
    return result
