"""Lock and unlock by one caller: latency and client CPU beside other clients, on etcd that syncs to disk."""

from __future__ import annotations

import contextlib
from statistics import median

from benchmarks.bench import Bench
from benchmarks.clients import Client, Clients, Run, connected
from benchmarks.contenders import ETCD_PEERS, ETCD_PYTHON_PEERS, GO, OURS, OURS_GRPCIO
from benchmarks.etcd_figures import fsync_milliseconds
from benchmarks.result import Goal, Result
from benchmarks.rounds import percentile, ratio, rotated, spread
from benchmarks.servers import etcd_server, etcd_version

__all__ = ["run"]

COLUMNS = {
    "client": "client",
    "members": "etcd members",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "spread_percent": "spread of p50 %",
    "cpu_us": "client CPU us a pair",
    "ratio": "p50 / ours",
}


def run(bench: Bench) -> Result:
    result = Result((__doc__ or "").strip(), COLUMNS)
    for members in (1, 3):
        _on_cluster(bench, result, members)
    result.notes += [
        "etcd3gw, tooz and python-etcd3 grant a lease at each acquire, a third commit; Go and ours make a session once",
        "client CPU: user and system time of the client's process, of all its threads",
    ]
    return result


def _on_cluster(bench: Bench, result: Result, members: int) -> None:
    rounds, pairs = bench.scaled(full=11, quick=2), bench.scaled(full=300, quick=60)
    with contextlib.ExitStack() as running:
        bench.say(f"starting etcd, {members} member(s)")
        etcd = running.enter_context(etcd_server(bench.scratch, members))
        clients = running.enter_context(connected(bench, (OURS, *ETCD_PEERS, OURS_GRPCIO), {"etcd": etcd}))
        for client in clients.running:
            client.run(pairs)
        runs: dict[str, list[Run]] = {client.name: [] for client in clients.running}
        for number in range(rounds):
            for client in rotated(clients.running, number):
                runs[client.name].append(client.run(pairs))
            latest = ", ".join(f"{name} {median(of[-1].microseconds) / 1e3:.2f} ms" for name, of in runs.items())
            bench.say(f"{members} member(s), round {number + 1} of {rounds}: {latest}")
        fsync = fsync_milliseconds(etcd.endpoint)
    _fill(result, members, runs, clients)
    if members == 1:
        result.notes.append(f"{rounds} rounds of {pairs} pairs each, in turn, after as many to warm up")
        result.notes += [_versions(client) for client in clients.running]
    if fsync is not None:
        result.notes.append(
            f"etcd {etcd_version()}, {members} member(s): its log's sync took {fsync:.2f} ms on average; "
            "a pair waits for two"
        )


def _versions(client: Client) -> str:
    return f"{client.name}: {client.versions}"


def _fill(result: Result, members: int, runs: dict[str, list[Run]], clients: Clients) -> None:
    p50s = {name: [median(run.microseconds) / 1e3 for run in of] for name, of in runs.items()}
    p95s = {name: [percentile(run.microseconds, 95) / 1e3 for run in of] for name, of in runs.items()}
    cpus = {name: [run.cpu_each for run in of] for name, of in runs.items()}
    for name in runs:
        result.rows.append(
            {
                "client": name,
                "members": str(members),
                "p50_ms": median(p50s[name]),
                "p95_ms": median(p95s[name]),
                "spread_percent": spread(p50s[name]),
                "cpu_us": median(cpus[name]),
                "ratio": ratio(p50s[name], p50s[OURS.name]),
            }
        )
    result.rows += [
        {"client": name, "members": str(members), "not_measured": reason} for name, reason in clients.absent.items()
    ]
    ours, go = p50s[OURS.name], p50s.get(GO.name)
    pythons = [ratio(p50s[peer.name], ours) for peer in ETCD_PYTHON_PEERS if peer.name in p50s]
    where = f"{members} member(s): "
    result.goals += [
        Goal(f"{where}our p50 at most 1.25 of Go's", ratio(ours, go) if go else None, at_most=1.25),
        Goal(f"{where}at least 3 times faster than the fastest Python etcd client", min(pythons, default=None), 3.0),
    ]
    if members == 1:
        result.goals.append(Goal("client CPU at most 400 us a pair", median(cpus[OURS.name]), at_most=400))
    result.rounds[f"{members} members"] = {
        name: {"p50_ms": p50s[name], "p95_ms": p95s[name], "cpu_us": cpus[name]} for name in runs
    }
