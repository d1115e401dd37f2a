"""What a lock client is made to do: pairs in a row, pairs by many callers, hand-offs, locks held."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["LockClient", "Workloads"]

HOLDING_THREADS = 32
IN_LINE_SECONDS = 90.0
#: For watches to be set after a waiter is in line, or for pollers to be all polling.
SETTLE_SECONDS = 0.5


@dataclass(frozen=True)
class LockClient:
    """``acquire`` takes a free lock, ``wait`` waits for one that is held; both return what releases it.

    ``contenders`` tells how many hold a lock or are in line for it; ``None`` where waiters poll, unseen.
    """

    acquire: Callable[[str], Callable[[], object]]
    wait: Callable[[str], Callable[[], object]] | None = None
    contenders: Callable[[str], int] | None = None


class Workloads:
    """Times are in microseconds, by the clock of this one process."""

    def __init__(self, client: LockClient) -> None:
        self._client = client
        self._lines = 0
        self._held: list[Callable[[], object]] = []

    def run(self, pairs: int) -> dict[str, object]:
        with _measured() as answer:
            answer["microseconds"] = self._pairs("bench", pairs)
        return answer

    def many(self, callers: int, pairs: int) -> dict[str, object]:
        start = threading.Barrier(callers + 1)

        def caller(number: int) -> list[float]:
            start.wait()
            return self._pairs(f"bench-{number}", pairs)

        with ThreadPoolExecutor(callers) as pool:
            running = [pool.submit(caller, number) for number in range(callers)]
            start.wait()
            with _measured() as answer:
                answer["microseconds"] = [one for each in running for one in each.result()]
        return answer

    def distinct(self, callers: int, pairs: int) -> dict[str, object]:
        """Each pair on a name that was never used before."""

        def caller(number: int) -> None:
            for pair in range(pairs):
                self._client.acquire(f"bench-distinct-{self._lines}-{number}-{pair}")()

        self._lines += 1
        with _measured() as answer, ThreadPoolExecutor(callers) as pool:
            list(pool.map(caller, range(callers)))
        return answer

    def hand_off(self, waiters: int) -> dict[str, object]:
        """The figures are those of hand-offs with at least half of the waiters still in line."""
        wait = self._client.wait
        if wait is None:
            raise SystemExit("this client doesn't wait for locks")
        self._lines += 1
        name = f"bench-line-{self._lines}"
        released_at = 0.0
        microseconds: list[float] = []

        def waiter() -> None:
            nonlocal released_at
            release = wait(name)
            microseconds.append((time.perf_counter() - released_at) * 1e6)
            released_at = time.perf_counter()
            release()

        release = self._client.acquire(name)
        threads = [threading.Thread(target=waiter, daemon=True) for _ in range(waiters)]
        for thread in threads:
            thread.start()
        self._wait_until_in_line(name, threads)
        with _measured() as answer:
            released_at = time.perf_counter()
            release()
            for thread in threads:
                thread.join()
        if len(microseconds) != waiters:
            raise SystemExit(f"{len(microseconds)} of {waiters} waiters got the lock")
        answer["microseconds"] = [round(one, 1) for one in microseconds[: (waiters + 1) // 2]]
        return answer

    def hold(self, locks: int) -> dict[str, object]:
        with _measured() as answer, ThreadPoolExecutor(HOLDING_THREADS) as pool:
            self._held += pool.map(self._client.acquire, [f"bench-held-{number}" for number in range(locks)])
        return answer

    def _pairs(self, name: str, pairs: int) -> list[float]:
        microseconds = []
        acquire = self._client.acquire
        for _ in range(pairs):
            started = time.perf_counter()
            acquire(name)()
            microseconds.append(round((time.perf_counter() - started) * 1e6, 1))
        return microseconds

    def _wait_until_in_line(self, name: str, waiters: list[threading.Thread]) -> None:
        give_up_at = time.monotonic() + IN_LINE_SECONDS
        while self._client.contenders is not None and self._client.contenders(name) <= len(waiters):
            if time.monotonic() > give_up_at or not all(waiter.is_alive() for waiter in waiters):
                waiting = sum(waiter.is_alive() for waiter in waiters)
                raise SystemExit(f"{waiting} of {len(waiters)} waiters wait, and not all of them are in line")
            time.sleep(0.05)
        time.sleep(SETTLE_SECONDS)


@contextmanager
def _measured() -> Iterator[dict[str, object]]:
    answer: dict[str, object] = {}
    started, cpu_started = time.perf_counter(), time.process_time()
    yield answer
    answer["seconds"] = time.perf_counter() - started
    answer["cpu_microseconds"] = (time.process_time() - cpu_started) * 1e6
