"""What one etcd carries: the cost of a renewal, of a lock, of a held key and of a waiter's watch."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from benchmarks.bench import Bench
from benchmarks.clients import connected
from benchmarks.contenders import OURS
from benchmarks.cpu_time import cpu_seconds, resident_mebibytes
from benchmarks.etcd_figures import etcd_figures
from benchmarks.result import Result
from benchmarks.servers import Server, etcd_server
from celery_etcdlock.core.operations import (
    AwaitChange,
    CheckKeys,
    FenceSession,
    GrantLease,
    KeepAlive,
)
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.etcd_store import EtcdStore

__all__ = ["run"]

COLUMNS = {
    "what": "what",
    "count": "of them",
    "rate": "a second",
    "etcd_us": "etcd CPU us each",
    "etcd_kib": "etcd memory KiB each",
    "database_bytes": "database bytes each",
}
THREADS = 16
CALLERS = 64


def run(bench: Bench) -> Result:
    sessions, rounds = bench.scaled(full=1000, quick=200), bench.scaled(full=5, quick=2)
    result = Result((__doc__ or "").strip(), COLUMNS)
    with contextlib.ExitStack() as running:
        etcd = running.enter_context(etcd_server(bench.scratch))
        store = EtcdStore(EtcdClient(etcd.endpoint), "/bench/")
        running.callback(store.close)
        pool = running.enter_context(ThreadPoolExecutor(THREADS))
        leases = [secrets.randbits(62) + 1 for _ in range(sessions)]

        def open_session(lease: int) -> None:
            store.perform(GrantLease(lease, 600), 10)
            store.perform(FenceSession(lease), 10)

        def renew(lease: int) -> None:
            store.perform(KeepAlive(lease), 10)
            store.perform(CheckKeys(lease, ()), 10)

        bench.say(f"{sessions:,} sessions")
        _add(
            result, etcd, "session opened (a lease and its key)", sessions, lambda: list(pool.map(open_session, leases))
        )
        bench.say(f"renewing each {rounds} times")
        all_of_them = leases * rounds
        _add(
            result,
            etcd,
            "renewal (a keepalive and a look)",
            len(all_of_them),
            lambda: list(pool.map(renew, all_of_them)),
        )
        _watches(bench, result, etcd, store)
    with contextlib.ExitStack() as running:
        etcd = running.enter_context(etcd_server(bench.scratch))
        clients = running.enter_context(connected(bench, (OURS,), {"etcd": etcd}))
        (client,) = clients.running
        pairs = bench.scaled(full=1500, quick=300)
        client.run(100)
        bench.say("locks by one caller, then by 64")
        _add(result, etcd, "lock+unlock, one caller", pairs, lambda: client.run(pairs))
        each = bench.scaled(full=200, quick=20)
        _add(result, etcd, "lock+unlock, 64 callers in one process", CALLERS * each, lambda: client.many(CALLERS, each))
        held = bench.scaled(full=20_000, quick=4000)
        _add(result, etcd, "lock taken and held", held, lambda: client.hold(held))
    result.notes = [
        f"renewals and sessions: {THREADS} threads of one process, whose CPU limits the rate, not etcd's; a watch has "
        "a connection of its own, as each waiter's has",
        "etcd's memory grows in steps with Go's garbage collector, so it is a rough figure",
    ]
    return result


def _add(result: Result, etcd: Server, what: str, count: int, work: Callable[[], object]) -> None:
    cpu, memory, database = _etcd(etcd)
    started = time.monotonic()
    work()
    seconds = time.monotonic() - started
    cpu_after, memory_after, database_after = _etcd(etcd)
    result.rows.append(
        {
            "what": what,
            "count": f"{count:,}",
            "rate": count / seconds,
            "etcd_us": (cpu_after - cpu) / count * 1e6,
            "etcd_kib": max(0.0, (memory_after - memory) * 1024 / count),
            "database_bytes": max(0.0, (database_after - database) / count),
        }
    )
    result.rounds[what] = {"count": count, "seconds": seconds}


def _watches(bench: Bench, result: Result, etcd: Server, store: EtcdStore) -> None:
    watches, seconds = bench.scaled(full=500, quick=100), bench.scaled(full=10, quick=4)
    bench.say(f"{watches} watches for {seconds} s")

    def wait_in_line() -> None:
        with ThreadPoolExecutor(watches) as pool:
            for number in range(watches):
                pool.submit(store.perform, AwaitChange(f"line-{number}", 1, "before"), seconds)

    _, memory, _ = _etcd(etcd)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_in_line)
        time.sleep(seconds / 2)
        (cpu, memory_then, _), there = _etcd(etcd), etcd_figures(etcd.endpoint)["etcd_debugging_mvcc_watcher_total"]
        started = time.monotonic()
        time.sleep(seconds / 4)
        cpu_after, elapsed = _etcd(etcd)[0], time.monotonic() - started
        waiting.result()
    result.rows.append(
        {
            "what": "waiter's watch, idle, for a second",
            "count": f"{there:,.0f}",
            "etcd_us": (cpu_after - cpu) / elapsed / max(there, 1) * 1e6,
            "etcd_kib": max(0.0, (memory_then - memory) * 1024 / max(there, 1)),
        }
    )


def _etcd(etcd: Server) -> tuple[float, float, float]:
    """Its CPU in seconds, its memory in MiB, its database in bytes."""
    memory = sum(resident_mebibytes(pid) or 0.0 for pid in etcd.pids)
    return cpu_seconds(*etcd.pids) or 0.0, memory, etcd_figures(etcd.endpoint)["etcd_mvcc_db_total_size_in_bytes"]
