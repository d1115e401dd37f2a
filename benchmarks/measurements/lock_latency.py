"""Lock and unlock by one caller: latency beside other etcd clients, on one etcd that syncs to disk."""

from __future__ import annotations

import contextlib
from statistics import median

from benchmarks.bench import Bench
from benchmarks.clients import OURS, PEERS, Client, NotInstalled, Run, connected
from benchmarks.result import Goal, Result
from benchmarks.rounds import percentile, ratio, rotated, spread
from benchmarks.servers import etcd_server, etcd_version, fsync_milliseconds

__all__ = ["run"]

COLUMNS = {
    "client": "client",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "spread_percent": "spread of p50 %",
    "cpu_us": "client CPU us a pair",
    "ratio": "p50 / ours",
}


def run(bench: Bench) -> Result:
    rounds, pairs = bench.scaled(full=15, quick=5), bench.scaled(full=400, quick=150)
    result = Result((__doc__ or "").strip(), COLUMNS)
    with contextlib.ExitStack() as running:
        bench.say("starting etcd")
        etcd = running.enter_context(etcd_server(bench.scratch))
        clients: list[Client] = []
        absent: dict[str, str] = {}
        for peer in (OURS, *PEERS):
            bench.say(f"{peer.name}: connecting (the first time it may have to be built)")
            try:
                clients.append(running.enter_context(connected(peer, etcd.endpoint, bench.scratch)))
            except NotInstalled as reason:
                absent[peer.name] = str(reason)
        for client in clients:
            client.run(pairs)
        runs: dict[str, list[Run]] = {client.name: [] for client in clients}
        for number in range(rounds):
            for client in rotated(clients, number):
                runs[client.name].append(client.run(pairs))
            latest = ", ".join(f"{name} {median(of[-1].microseconds) / 1e3:.2f} ms" for name, of in runs.items())
            bench.say(f"round {number + 1} of {rounds}: {latest}")
        fsync = fsync_milliseconds(etcd.endpoint)
    _fill(result, runs, absent)
    result.notes.append(f"{rounds} rounds of {pairs} pairs each, in turn, after as many to warm up")
    result.notes += [f"{client.name}: {client.versions}" for client in clients]
    if fsync is not None:
        result.notes.append(
            f"etcd {etcd_version()}: its log's sync took {fsync:.2f} ms on average; a pair waits for two"
        )
    result.notes.append(
        "python-etcd3's Lock grants a lease at each acquire, a third commit; the others make a session once"
    )
    return result


def _fill(result: Result, runs: dict[str, list[Run]], absent: dict[str, str]) -> None:
    p50s = {name: [median(run.microseconds) / 1e3 for run in of] for name, of in runs.items()}
    p95s = {name: [percentile(run.microseconds, 95) / 1e3 for run in of] for name, of in runs.items()}
    cpus = {name: [run.cpu_microseconds / len(run.microseconds) for run in of] for name, of in runs.items()}
    for name in runs:
        result.rows.append(
            {
                "client": name,
                "p50_ms": median(p50s[name]),
                "p95_ms": median(p95s[name]),
                "spread_percent": spread(p50s[name]),
                "cpu_us": median(cpus[name]),
                "ratio": ratio(p50s[name], p50s[OURS.name]),
            }
        )
    result.rows += [{"client": name, "not_measured": reason} for name, reason in absent.items()]
    ours, (etcd3, go) = p50s[OURS.name], (p50s.get(peer.name) for peer in PEERS)
    result.goals = [
        Goal("at least 2.5 times faster than python-etcd3 (its p50 / ours)", _ratio(etcd3, ours), at_least=2.5),
        Goal("at most 1.5 times Go's concurrency.Mutex (our p50 / its)", _ratio(ours, go), at_most=1.5),
    ]
    result.rounds = {name: {"p50_ms": p50s[name], "p95_ms": p95s[name], "cpu_us": cpus[name]} for name in runs}


def _ratio(numerators: list[float] | None, denominators: list[float] | None) -> float | None:
    return None if numerators is None or denominators is None else ratio(numerators, denominators)
