"""10,000 locks held by one process: what their renewal costs, beside a lease for each lock."""

from __future__ import annotations

import contextlib
import time

from benchmarks.bench import Bench
from benchmarks.clients import Client, connected
from benchmarks.contenders import GO, OURS, Peer
from benchmarks.cpu_time import cpu_seconds, resident_mebibytes
from benchmarks.etcd_figures import requests_handled
from benchmarks.result import Cell, Goal, Result
from benchmarks.servers import etcd_server

__all__ = ["run"]

COLUMNS = {
    "client": "client",
    "locks": "locks",
    "leases": "leases",
    "requests": "requests/min",
    "client_cpu": "client CPU %",
    "etcd_cpu": "etcd CPU %",
    "rss": "client RSS MiB",
    "take_seconds": "s to take all",
}
#: Go's server sees each renewal as a message in one stream.
METHODS = ("Txn", "Range", "LeaseKeepAlive", "Put", "LeaseTimeToLive")


def run(bench: Bench) -> Result:
    seconds = bench.scaled(full=40, quick=4)
    result = Result((__doc__ or "").strip(), COLUMNS)
    all_locks = bench.scaled(full=10_000, quick=2000)
    cases: list[tuple[Peer, int]] = [(OURS, 100), (OURS, all_locks), (GO, all_locks)]
    for peer, locks in cases:
        with contextlib.ExitStack() as running:
            etcd = running.enter_context(etcd_server(bench.scratch))
            clients = running.enter_context(connected(bench, (peer,), {"etcd": etcd}))
            label = f"{peer.name}, one lease" if peer is OURS else f"{peer.name}, a session for each lock"
            for name, reason in clients.absent.items():
                result.rows.append({"client": name, "not_measured": reason})
            for client in clients.running:
                row = _observe(bench, client, locks, seconds, etcd.endpoint, etcd.pids)
                row |= {"client": label, "leases": "1" if peer is OURS else f"{locks:,}"}
                result.rows.append(row)
    ours = [row for row in result.rows if str(row["client"]).startswith(OURS.name)]
    few, many = ours[0], ours[-1]
    result.goals = [
        Goal(f"{all_locks:,} locks: below 2 % of a core for renewal", _number(many["client_cpu"]), at_most=2.0),
        Goal(
            "a bounded number of requests: requests a minute beyond those for 100 locks (10 for each renewal)",
            (_number(many["requests"]) or 0) - (_number(few["requests"]) or 0),
            at_most=10 * 60 / (30 / 3 * 0.85),
        ),
    ]
    result.notes = [
        f"over {seconds} s after all were taken; TTL 30 s, so a renewal each 8.5 to 10 s",
        "a renewal is one keepalive, one look at the session's key, and a look at up to 1,200 held keys in turn",
        "requests: messages that etcd received; CPU in percent of one core",
    ]
    return result


def _observe(
    bench: Bench, client: Client, locks: int, seconds: int, endpoint: str, etcd_pids: tuple[int, ...]
) -> dict[str, Cell]:
    bench.say(f"{client.name}: taking {locks:,} locks")
    taken_in = client.hold(locks)
    time.sleep(2)  # what the taking left to do
    bench.say(f"{client.name}: watching its renewals for {seconds} s")
    requests, client_cpu, etcd_cpu = requests_handled(endpoint), cpu_seconds(client.pid), cpu_seconds(*etcd_pids)
    started = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - started
    after = requests_handled(endpoint)
    made = sum(after[method] - requests[method] for method in METHODS)
    return {
        "locks": f"{locks:,}",
        "requests": made * 60 / elapsed,
        "client_cpu": _percent(client_cpu, cpu_seconds(client.pid), elapsed),
        "etcd_cpu": _percent(etcd_cpu, cpu_seconds(*etcd_pids), elapsed),
        "rss": resident_mebibytes(client.pid),
        "take_seconds": taken_in,
    }


def _percent(before: float | None, after: float | None, seconds: float) -> float | None:
    return None if before is None or after is None else (after - before) / seconds * 100


def _number(cell: Cell) -> float | None:
    return cell if isinstance(cell, float) else None
