"""Duplicates dropped by the caller of a task: 1 % unique, the rest refused while the first is pending."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from statistics import median

from redis import Redis

from benchmarks.apps import LOCKED, ONCE, SINGLETON, App
from benchmarks.bench import Bench
from benchmarks.clients import Client, Clients, Run, connect
from benchmarks.environments import NotInstalled
from benchmarks.etcd_figures import requests_handled
from benchmarks.result import Goal, Result
from benchmarks.rounds import percentile, ratio, rotated, spread
from benchmarks.servers import Server, etcd_server, redis_server
from benchmarks.workers import surroundings

__all__ = ["run"]

COLUMNS = {
    "app": "plug-in",
    "store": "its lock store",
    "rate": "dropped/s",
    "spread_percent": "spread %",
    "p50_ms": "p50 ms a call",
    "p99_ms": "p99 ms",
    "trips": "round trips a call",
    "per_trip": "dropped a round trip",
    "cpu_us": "caller's CPU us a call",
}
UNIQUE_EVERY = 100
CALLERS: tuple[tuple[App, str], ...] = (
    (LOCKED, "etcd, synced"),
    (SINGLETON, "Redis, AOF always"),
    (ONCE, "Redis, AOF always"),
)


def run(bench: Bench) -> Result:
    rounds, calls = bench.scaled(full=7, quick=3), bench.scaled(full=2000, quick=500)
    runs: dict[str, list[Run]] = {}
    trips: dict[str, list[float]] = {}
    with contextlib.ExitStack() as running:
        etcd = running.enter_context(etcd_server(bench.scratch))
        broker = running.enter_context(redis_server(bench.scratch))
        locks = running.enter_context(redis_server(bench.scratch, synced=True))
        clients = Clients()
        for app, _ in CALLERS:
            bench.say(f"{app.label}: starting its caller (the first time it is installed)")
            try:
                command = [app.python(), "-m", "benchmarks.peers.enqueue", app.module]
                extra = surroundings(broker, etcd, locks)
                clients.running.append(running.enter_context(connect(app.label, command, bench.scratch, extra)))
            except NotInstalled as reason:
                clients.absent[app.label] = str(reason)
        for client in clients.running:
            client.run(UNIQUE_EVERY)
        count = _round_trips(etcd, locks)
        for number in range(rounds):
            for client in rotated(clients.running, number):
                before = count(client)
                runs.setdefault(client.name, []).append(client.run(calls))
                trips.setdefault(client.name, []).append((count(client) - before) / calls)
            latest = ", ".join(f"{name} {of[-1].rate:,.0f}/s" for name, of in runs.items())
            bench.say(f"round {number + 1} of {rounds}: {latest}")
        _check(broker, len(clients.running), rounds * calls + UNIQUE_EVERY)
    result = Result((__doc__ or "").strip(), COLUMNS)
    share = 1 - 1 / UNIQUE_EVERY
    rates = {name: [run.rate * share for run in of] for name, of in runs.items()}
    for app, store in CALLERS:
        if app.label not in runs:
            result.rows.append({"app": app.label, "store": store, "not_measured": clients.absent[app.label]})
            continue
        of = runs[app.label]
        result.rows.append(
            {
                "app": app.label,
                "store": store,
                "rate": median(rates[app.label]),
                "spread_percent": spread(rates[app.label]),
                "p50_ms": median(median(run.microseconds) / 1e3 for run in of),
                "p99_ms": median(percentile(run.microseconds, 99) / 1e3 for run in of),
                "trips": median(trips[app.label]),
                "per_trip": share / median(trips[app.label]),
                "cpu_us": median(run.cpu_each for run in of),
            }
        )
    for app in (SINGLETON, ONCE):
        ahead = median(trips[app.label]) / median(trips[LOCKED.label]) if app.label in trips else None
        result.goals.append(Goal(f"more dropped for each round trip than {app.label} (ours / its)", ahead, 1.001))
    result.notes = [
        f"{rounds} rounds of {calls} calls, in turn, one caller; the first of each {UNIQUE_EVERY} is published",
        "ours: lock='until_executed', on_conflict='skip'; round trips are counted by the lock's server",
        "a refused acquire leaves no history in etcd, but is an entry in its log, and synced; Redis syncs writes only",
    ]
    if all(app.label in rates for app, _ in CALLERS):
        result.notes += [
            f"absolute: ours drops {ratio(rates[LOCKED.label], rates[app.label]):.2f} times as many a second as "
            f"{app.label}"
            for app in (SINGLETON, ONCE)
        ]
    result.rounds = {name: {"dropped_a_second": rates[name], "round_trips": trips[name]} for name in runs}
    return result


def _round_trips(etcd: Server, locks: Server) -> Callable[[Client], float]:
    """How many requests the client's lock store has had so far."""
    host, _, port = locks.endpoint.rpartition(":")
    redis = Redis(host=host, port=int(port))

    def count(client: Client) -> float:
        if client.name == LOCKED.label:
            return requests_handled(etcd.endpoint)["Txn"] + requests_handled(etcd.endpoint)["Range"]
        stats = redis.info("commandstats")
        return float(sum(figures["calls"] for name, figures in stats.items() if name in LOCK_COMMANDS))

    return count


LOCK_COMMANDS = ("cmdstat_set", "cmdstat_get", "cmdstat_pttl", "cmdstat_setnx", "cmdstat_del", "cmdstat_evalsha")


def _check(broker: Server, callers: int, calls: int) -> None:
    """Raises ``RuntimeError`` unless exactly the unique ones were published."""
    host, _, port = broker.endpoint.rpartition(":")
    published = Redis(host=host, port=int(port)).llen("celery")
    wanted = callers * (calls // UNIQUE_EVERY)
    if published != wanted:
        raise RuntimeError(f"{published} messages were published, not {wanted}")
