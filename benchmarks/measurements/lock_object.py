"""Lock objects: one that 64 threads share beside one for each, and 1,000 asyncio tasks that wait for one name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from celery import Celery

from benchmarks.bench import Bench
from benchmarks.result import Goal, Result
from benchmarks.rounds import ratio, rotated, spread
from benchmarks.servers import Server, etcd_server, redis_server
from celery_etcdlock import EtcdLocks

__all__ = ["run"]

COLUMNS = {
    "what": "what",
    "turns_per_second": "turns a second",
    "spread_percent": "spread %",
    "cpu_us": "client CPU us a turn",
    "threads": "most threads",
    "sockets": "most sockets",
    "ratio": "turns / ours shared",
}
THREADS = 64
SHARED, EACH = f"{THREADS} threads, one object", f"{THREADS} threads, an object each"
OURS, REDIS = "asyncio: ours", "asyncio: redis-py, no persistence"
WAIT_SECONDS = 300.0


@dataclass(frozen=True)
class Turns:
    """What one run of a way came to."""

    per_second: float
    cpu_microseconds: float
    threads: int
    sockets: int


def run(bench: Bench) -> Result:
    rounds, turns, tasks = (
        bench.scaled(full=5, quick=1),
        bench.scaled(full=640, quick=128),
        bench.scaled(full=1000, quick=200),
    )
    with contextlib.ExitStack() as running:
        etcd = running.enter_context(etcd_server(bench.scratch))
        redis = running.enter_context(redis_server(bench.scratch))
        locks = running.enter_context(_opened(etcd))
        ways: dict[str, Callable[[], Turns]] = {
            SHARED: lambda: _threads(locks, turns, shared=True),
            EACH: lambda: _threads(locks, turns, shared=False),
            OURS: lambda: asyncio.run(_tasks(tasks, lambda: _our_turns(locks))),
            REDIS: lambda: asyncio.run(_tasks(tasks, lambda: _redis_turns(redis))),
        }
        done: dict[str, list[Turns]] = {name: [] for name in ways}
        for number in range(rounds):
            for name in rotated(list(ways), number):
                bench.say(f"round {number + 1} of {rounds}: {name}")
                done[name].append(ways[name]())
    return _result(done, rounds, turns, tasks)


def _result(done: dict[str, list[Turns]], rounds: int, turns: int, tasks: int) -> Result:
    result = Result((__doc__ or "").strip(), COLUMNS)
    rates = {name: [one.per_second for one in of] for name, of in done.items()}
    for name, of in done.items():
        base = OURS if name in (OURS, REDIS) else SHARED
        result.rows.append(
            {
                "what": name,
                "turns_per_second": median(rates[name]),
                "spread_percent": spread(rates[name]),
                "cpu_us": median(one.cpu_microseconds for one in of),
                "threads": str(max(one.threads for one in of)),
                "sockets": str(max(one.sockets for one in of)),
                "ratio": ratio(rates[name], rates[base]),
            }
        )
    result.goals += [
        Goal("one shared object at least 0.8 of the turns of an object each", ratio(rates[SHARED], rates[EACH]), 0.8),
        Goal("asyncio: at least the turns of redis-py", ratio(rates[OURS], rates[REDIS]), 1.0),
    ]
    result.notes = [
        f"{rounds} rounds in turn; a turn is an acquire that waits, and a release at once; {turns} turns by threads, "
        f"one by each of {tasks:,} tasks that all wait before the first turn",
        "threads and sockets are those of the whole process while everybody waits, the other ways' idle ones included",
        "redis-py's asyncio Lock polls each 0.1 s and has no order; etcd syncs each turn to disk twice",
    ]
    result.rounds = {name: {"turns_per_second": values} for name, values in rates.items()}
    return result


@contextlib.contextmanager
def _opened(etcd: Server) -> Any:
    app = Celery("bench", broker="memory://", set_as_current=False)
    app.conf.etcdlock_endpoints = etcd.endpoint
    app.conf.etcdlock_timeout = 20
    locks = EtcdLocks.from_app(app)
    with locks.lock("warm up"):
        pass
    yield locks
    locks.close()


def _threads(locks: EtcdLocks, turns: int, *, shared: bool) -> Turns:
    one = locks.lock("shared", wait_timeout=WAIT_SECONDS)
    most = 0

    def work() -> None:
        lock = one if shared else locks.lock("shared", wait_timeout=WAIT_SECONDS)
        for _ in range(turns // THREADS):
            with lock:
                pass

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    with locks.lock("shared"):
        for thread in threads:
            thread.start()
        _wait_until(lambda: locks.access().local_waiters.queued(["shared"]) >= THREADS)
        most = threading.active_count()
        sockets = _sockets()
        started, cpu_started = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.join()
    return _turns(turns, started, cpu_started, most, sockets)


async def _tasks(tasks: int, turns_of: Callable[[], contextlib.AbstractAsyncContextManager[Any]]) -> Turns:
    async with turns_of() as (hold, turn, waits):
        async with hold:
            running = [asyncio.create_task(turn()) for _ in range(tasks)]
            while waits() < tasks:  # noqa: ASYNC110 - two clients, of which none has an event for it
                await asyncio.sleep(0.01)
            threads, sockets = threading.active_count(), _sockets()
            started, cpu_started = time.perf_counter(), time.process_time()
        await asyncio.gather(*running)
        return _turns(tasks, started, cpu_started, threads, sockets)


@contextlib.asynccontextmanager
async def _our_turns(locks: EtcdLocks) -> AsyncIterator[Any]:
    lock = locks.alock("tasks", wait_timeout=WAIT_SECONDS)

    async def turn() -> None:
        async with lock:
            pass

    yield lock, turn, lambda: locks.access().local_waiters.queued(["tasks"])


@contextlib.asynccontextmanager
async def _redis_turns(redis: Server) -> AsyncIterator[Any]:
    from redis.asyncio import BlockingConnectionPool, Redis

    # Its default pool raises an error to the 101st who asks at the same time.
    pool = BlockingConnectionPool.from_url(_url(redis), max_connections=100, timeout=None)
    client: Any = Redis(connection_pool=pool)
    waiting = 0

    async def turn() -> None:
        nonlocal waiting
        lock = client.lock("tasks", timeout=30, blocking_timeout=WAIT_SECONDS)
        waiting += 1
        async with lock:
            pass

    yield client.lock("tasks", timeout=30), turn, lambda: waiting
    await client.aclose()
    await pool.disconnect()


def _url(redis: Server) -> str:
    return redis.endpoint if "://" in redis.endpoint else f"redis://{redis.endpoint}"


def _turns(turns: int, started: float, cpu_started: float, threads: int, sockets: int) -> Turns:
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    return Turns(turns / seconds, cpu / turns * 1e6, threads, sockets)


def _sockets() -> int:
    """Sockets of this process; 0 where the kernel doesn't say."""
    found = 0
    for entry in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{entry}").startswith("socket:")
    return found


def _wait_until(probe: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 60
    while not probe():
        if time.monotonic() > give_up_at:
            raise SystemExit("not all wait within 60 s")
        time.sleep(0.01)
