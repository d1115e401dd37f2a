"""Soak: 200,000 locks with distinct names; what they leave behind in the client and in etcd."""

from __future__ import annotations

import contextlib
import time

from benchmarks.bench import Bench
from benchmarks.clients import connected
from benchmarks.contenders import OURS
from benchmarks.cpu_time import resident_mebibytes
from benchmarks.etcd_figures import etcd_figures
from benchmarks.result import Cell, Goal, Result
from benchmarks.servers import etcd_server

__all__ = ["run"]

COLUMNS = {
    "when": "after",
    "client_rss": "client RSS MiB",
    "keys": "keys",
    "leases": "leases",
    "watches": "watches",
    "database": "database MiB",
    "in_use": "of it in use",
    "etcd_rss": "etcd RSS MiB",
    "rate": "locks/s",
}
CALLERS = 32
STEPS = 10
#: So short that a soak of a minute is compacted several times; what is kept is this much of history.
RETENTION = "5s"
MEBIBYTE = 2**20


def run(bench: Bench) -> Result:
    locks = bench.scaled(full=200_000, quick=5000)
    each = locks // STEPS // CALLERS
    rows: list[dict[str, float]] = []
    with contextlib.ExitStack() as running:
        etcd = running.enter_context(etcd_server(bench.scratch, compaction=RETENTION))
        clients = running.enter_context(connected(bench, (OURS,), {"etcd": etcd}))
        (client,) = clients.running

        def look(done: int, rate: float) -> None:
            figures = etcd_figures(etcd.endpoint)
            rows.append(
                {
                    "locks": done,
                    "client_rss": resident_mebibytes(client.pid) or 0.0,
                    "keys": figures["etcd_debugging_mvcc_keys_total"],
                    "leases": figures["etcd_debugging_lease_granted_total"]
                    - figures["etcd_debugging_lease_revoked_total"],
                    "watches": figures["etcd_debugging_mvcc_watcher_total"],
                    "database": figures["etcd_mvcc_db_total_size_in_bytes"] / MEBIBYTE,
                    "in_use": figures["etcd_mvcc_db_total_size_in_use_in_bytes"] / MEBIBYTE,
                    "etcd_rss": sum(resident_mebibytes(pid) or 0.0 for pid in etcd.pids),
                    "rate": rate,
                }
            )
            bench.say(f"{done:,} of {locks:,} locks, {rate:,.0f}/s, database {rows[-1]['database']:.1f} MiB")

        look(0, 0.0)
        for step in range(STEPS):
            started = time.monotonic()
            client.distinct(CALLERS, each)
            look((step + 1) * each * CALLERS, each * CALLERS / (time.monotonic() - started))
        bench.say("waiting for the last compaction")
        time.sleep(bench.scaled(full=15, quick=7))
        look(STEPS * each * CALLERS, 0.0)
    result = Result((__doc__ or "").strip(), COLUMNS)
    labels = ["the start", *(f"{row['locks']:,.0f} locks" for row in rows[1:-1]), "the last compaction"]
    for label, row in zip(labels, rows, strict=True):
        cells: dict[str, Cell] = {name: f"{row[name]:,.0f}" for name in ("keys", "leases", "watches")}
        cells |= {name: row[name] for name in ("client_rss", "database", "in_use", "etcd_rss")}
        result.rows.append({"when": label} | cells | {"rate": row["rate"] or None})
    first, warm, end = rows[0], rows[1], rows[-1]
    middle = max(row["database"] for row in rows[1 : STEPS // 2 + 2])
    result.goals = [
        Goal(
            "client memory after all at most 1.1 of that after the first tenth",
            end["client_rss"] / warm["client_rss"],
            at_most=1.1,
        ),
        Goal("keys left behind", end["keys"] - first["keys"], at_most=0.0),
        Goal("leases left behind", end["leases"] - first["leases"], at_most=0.0),
        Goal("watches left behind", end["watches"] - first["watches"], at_most=0.0),
        Goal("database at the end at most 1.5 of its size half-way", end["database"] / middle, at_most=1.5),
    ]
    result.notes = [
        f"{CALLERS} callers; auto-compaction keeps {RETENTION} of history (5m is what we recommend): "
        "the database holds what is written in that time and the time between two compactions",
        "a compaction frees pages for reuse: the file doesn't shrink, it stops growing",
    ]
    result.rounds = {"samples": rows}
    return result
