"""Lock and unlock by 64 callers in one process, each with a lock of its own: pairs a second."""

from __future__ import annotations

import contextlib
from statistics import median

from benchmarks.bench import Bench
from benchmarks.clients import Clients, Run, connected
from benchmarks.contenders import ETCD_PEERS, GO, OURS, OURS_GEVENT, REDIS, REDIS_AOF
from benchmarks.environments import NotInstalled
from benchmarks.etcd_figures import etcd_figures
from benchmarks.result import Goal, Result
from benchmarks.rounds import percentile, ratio, rotated, spread
from benchmarks.servers import Server, etcd_server, redis_server

__all__ = ["run"]

COLUMNS = {
    "client": "client",
    "members": "servers",
    "rate": "pairs/s",
    "spread_percent": "spread %",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "cpu_us": "client CPU us a pair",
    "commits": "commits a pair",
    "ratio": "of ours",
}
CALLERS = 64
#: Slow ones do fewer pairs in a round, so that a round takes each about as long.
SLOW = 8


def run(bench: Bench) -> Result:
    result = Result((__doc__ or "").strip(), COLUMNS)
    _on_servers(bench, result, 1)
    _on_servers(bench, result, 3)
    result.notes += [
        "clients, etcd and Redis share the machine's cores",
        "commits a pair: etcd's proposals; group commit puts many pairs in one",
        "redis-py's Lock: no renewal, no fencing; with AOF always, Redis syncs once for all that came in one turn",
    ]
    return result


def _on_servers(bench: Bench, result: Result, members: int) -> None:
    rounds, pairs = bench.scaled(full=7, quick=2), bench.scaled(full=80, quick=16)
    with contextlib.ExitStack() as running:
        bench.say(f"starting servers, etcd with {members} member(s)")
        stores: dict[str, Server] = {"etcd": running.enter_context(etcd_server(bench.scratch, members))}
        if members == 1:
            stores["redis"] = running.enter_context(redis_server(bench.scratch))
            stores["redis-aof"] = running.enter_context(redis_server(bench.scratch, synced=True))
        peers = (OURS, OURS_GEVENT, *ETCD_PEERS, REDIS_AOF, REDIS)
        clients = running.enter_context(connected(bench, peers, stores))
        runs: dict[str, list[Run]] = {client.name: [] for client in clients.running}
        pairs_of: dict[str, int] = {}
        for client in list(clients.running):
            try:
                warm = client.many(CALLERS, 4)
            except NotInstalled as reason:
                clients.drop(client, reason)
                del runs[client.name]
            else:
                pairs_of[client.name] = pairs if warm.rate > 2000 else pairs // SLOW
        commits: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds):
            for client in rotated(clients.running, number):
                before = etcd_figures(stores["etcd"].endpoint)["etcd_server_proposals_applied_total"]
                done = client.many(CALLERS, pairs_of[client.name])
                after = etcd_figures(stores["etcd"].endpoint)["etcd_server_proposals_applied_total"]
                runs[client.name].append(done)
                commits[client.name].append((after - before) / len(done.microseconds))
            latest = ", ".join(f"{name} {of[-1].rate:,.0f}" for name, of in runs.items())
            bench.say(f"{members} member(s), round {number + 1} of {rounds}: {latest}")
    _fill(result, members, runs, commits, clients)
    if members == 1:
        result.notes.append(
            f"{rounds} rounds of {CALLERS} callers x {pairs} pairs, in turn; slow clients {SLOW}th of it"
        )
        result.notes += [f"{client.name}: {client.versions}" for client in clients.running]


def _fill(
    result: Result, members: int, runs: dict[str, list[Run]], commits: dict[str, list[float]], clients: Clients
) -> None:
    rates = {name: [run.rate for run in of] for name, of in runs.items()}
    for name, of in runs.items():
        redis = name.startswith("redis")
        result.rows.append(
            {
                "client": name,
                "members": "1 Redis" if redis else f"{members} etcd",
                "rate": median(rates[name]),
                "spread_percent": spread(rates[name]),
                "p50_ms": median(median(run.microseconds) / 1e3 for run in of),
                "p99_ms": median(percentile(run.microseconds, 99) / 1e3 for run in of),
                "cpu_us": median(run.cpu_each for run in of),
                "commits": None if redis else median(commits[name]),
                "ratio": ratio(rates[name], rates[OURS.name]),
            }
        )
    result.rows += [
        {"client": name, "members": f"{members} etcd", "not_measured": reason}
        for name, reason in clients.absent.items()
    ]
    for peer, wanted in ((GO, 1.5), (REDIS_AOF, 2.0)):
        if peer.store == "etcd" or members == 1:
            theirs = rates.get(peer.name)
            kept = ratio(rates[OURS.name], theirs) if theirs else None
            where = f"{members} member(s): " if peer.store == "etcd" else ""
            result.goals.append(Goal(f"{where}at least {wanted:g} times {peer.name}", kept, at_least=wanted))
    result.rounds[f"{members} members"] = {
        name: {"pairs_a_second": rates[name], "cpu_us": [run.cpu_each for run in of]} for name, of in runs.items()
    }
