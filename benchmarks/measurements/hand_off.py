"""Hand-off: from the release of a lock to the next waiter's entry, with 1, 100 and 1,000 in line."""

from __future__ import annotations

import contextlib
from statistics import median

from benchmarks.bench import Bench
from benchmarks.clients import Run, connected
from benchmarks.contenders import GO, OURS, REDIS
from benchmarks.environments import NotInstalled
from benchmarks.result import Goal, Result
from benchmarks.rounds import percentile, ratio, rotated, spread
from benchmarks.servers import etcd_server, redis_server

__all__ = ["run"]

COLUMNS = {
    "client": "client",
    "waiters": "waiters",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "spread_percent": "spread of p50 %",
    "cpu_us": "client CPU us a hand-off",
    "ratio": "p50 / ours",
}
LINES_OF_ONE = 10


def run(bench: Bench) -> Result:
    rounds = bench.scaled(full=3, quick=1)
    most = bench.scaled(full=1000, quick=200)
    # How often a line forms in one round: a line of one gives a single hand-off.
    lines_of = {1: bench.scaled(full=LINES_OF_ONE, quick=3), 100: 1, most: 1}
    runs: dict[tuple[str, int], list[list[Run]]] = {}
    broken: dict[tuple[str, int], str] = {}
    with contextlib.ExitStack() as running:
        stores = {
            "etcd": running.enter_context(etcd_server(bench.scratch)),
            "redis": running.enter_context(redis_server(bench.scratch)),
        }
        clients = running.enter_context(connected(bench, (OURS, GO, REDIS), stores))
        for number in range(rounds):
            for waiters, lines in lines_of.items():
                for client in rotated(clients.running, number):
                    bench.say(f"round {number + 1} of {rounds}: {client.name}, {waiters} waiters")
                    try:
                        done = [client.hand_off(waiters) for _ in range(lines)]
                    except NotInstalled as reason:
                        clients.drop(client, reason)
                        broken[client.name, waiters] = str(reason)
                    else:
                        runs.setdefault((client.name, waiters), []).append(done)
    result = Result((__doc__ or "").strip(), COLUMNS)
    p50s: dict[tuple[str, int], list[float]] = {}
    for case, of in runs.items():
        all_of = [[one / 1e3 for run in done for one in run.microseconds] for done in of]
        p50s[case] = [median(times) for times in all_of]
        together = [one for times in all_of for one in times]
        result.rows.append(
            {
                "client": case[0],
                "waiters": f"{case[1]:,}",
                "p50_ms": median(p50s[case]),
                "p99_ms": percentile(together, 99),
                "spread_percent": spread(p50s[case]),
                "cpu_us": median(run.cpu_microseconds / case[1] for done in of for run in done),
                "ratio": ratio(p50s[case], p50s[OURS.name, case[1]]) if (OURS.name, case[1]) in p50s else None,
            }
        )
    result.rows.sort(key=lambda row: int(str(row["waiters"]).replace(",", "")))
    result.rows += [{"client": name, "not_measured": reason} for name, reason in clients.absent.items()]
    for waiters in lines_of:
        ours, go = p50s.get((OURS.name, waiters)), p50s.get((GO.name, waiters))
        kept = ratio(ours, go) if ours and go else None
        result.goals.append(Goal(f"{waiters:,} waiters: at most 1.5 of Go's p50", kept, at_most=1.5))
    few, many = p50s.get((OURS.name, 1)), p50s.get((OURS.name, most))
    flat = ratio(many, few) if few and many else None
    result.goals.append(Goal(f"flat: p50 with {most:,} waiters at most 1.5 of that with one", flat, at_most=1.5))
    result.notes = [
        f"{rounds} rounds in turn; of each line the hand-offs with at least half of the waiters still in it; "
        "p99 over all rounds",
        "all waiters are threads (Go: goroutines) of one process, so that one clock times both ends",
        "Go: a session for each waiter, since contenders of one session share a key; redis-py polls each 0.1 s",
    ] + [f"{client.name}: {client.versions}" for client in clients.running]
    result.rounds = {f"{name}, {waiters} waiters": {"p50_ms": values} for (name, waiters), values in p50s.items()}
    return result
