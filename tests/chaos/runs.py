"""Runs one contender through faults and seeds, on several lanes at once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.checker import Counts, count, recovery
from tests.chaos.contenders import Contender
from tests.chaos.faults import Fault, Strike
from tests.chaos.lane import Lane
from tests.waiting import wait_for

ENTER_SECONDS = 40.0
QUIET_SECONDS = 40.0
SECOND_SECONDS = 20.0
BARRIER_SECONDS = 120.0


class Runs:
    """``name`` is that of the lanes."""

    def __init__(
        self,
        contender: Contender,
        store: Any,
        broker: Callable[[int], str],
        directory: Path,
        *,
        name: str,
        lanes: int,
        ttl_seconds: int,
    ) -> None:
        self._contender = contender
        self._store = store
        self._ttl_seconds = ttl_seconds
        self._lanes = [
            Lane(
                contender,
                f"{name}{number}",
                directory / f"{name}{number}",
                broker(number),
                store.endpoints,
                store.new_way,
                ttl_seconds,
                number,
            )
            for number in range(lanes)
        ]
        self._barrier = threading.Barrier(lanes)

    def start(self) -> None:
        together([lane.start for lane in self._lanes])

    def stop(self) -> None:
        for lane in self._lanes:
            lane.stop()

    def run(self, fault: Fault, seeds: Sequence[int]) -> Counts:
        """All seeds, an equal number on each lane."""
        lanes = len(self._lanes)
        total = Counts()
        results: list[Counts] = []

        def on(number: int) -> Callable[[], object]:
            return lambda: results.append(self._run_lane(number, fault, seeds[number::lanes]))

        try:
            together([on(number) for number in range(lanes)])
        finally:
            self._barrier.reset()
        for result in results:
            total.add(result)
        return total

    def _run_lane(self, number: int, fault: Fault, seeds: Sequence[int]) -> Counts:
        lane = self._lanes[number]
        began = time.monotonic()
        lane.kept.clear()
        recoveries = []
        for seed in seeds:
            recoveries.append(self._run_once(lane, number, fault, random.Random(f"{fault.name}/{seed}"), seed))
        for site in lane.sites:
            site.start()
        _until(lambda: set(lane.kept) <= lane.completed(), fault.settle_seconds)
        if fault.needs_kept:
            # A second delivery that waited for the first may still come, and must be counted.
            time.sleep(SECOND_SECONDS)
        _until(lambda: lane.holder() is None, QUIET_SECONDS)
        counts = count([event for event in lane.events() if event["at"] >= began], lane.kept)
        counts.seeds = len(seeds)
        counts.recoveries = [seconds for seconds in recoveries if seconds is not None]
        return counts

    def _run_once(self, lane: Lane, number: int, fault: Fault, chance: random.Random, seed: int) -> float | None:
        for site in lane.sites:
            site.start()
        body_seconds = round(chance.uniform(0.5, 1.7) * self._ttl_seconds, 2)
        if fault.needs_kept or seed % 2:
            lane.keep(body_seconds)
        lane.tell_pump(f"on {body_seconds}")
        wait_for(lane.holder, "somebody is inside", ENTER_SECONDS)
        time.sleep(chance.uniform(0.1, 0.4))
        holder = wait_for(lambda: self._victim(lane, fault), "somebody is inside", ENTER_SECONDS)
        assert holder is not None
        strike = Strike(lane, self._store, holder, number, body_seconds)
        first = not fault.shared or self._barrier.wait(BARRIER_SECONDS) == 0
        fault_at = time.monotonic()
        if first:
            fault.begin(strike)
        lasts = random.Random(f"{fault.name}/{seed if not fault.shared else 0}").uniform(*fault.lasts)
        time.sleep(lasts * self._ttl_seconds)
        if fault.shared:
            self._barrier.wait(BARRIER_SECONDS)
        if first:
            fault.heal(strike)
        _until(lambda: recovery(lane.events(), fault_at) is not None, ENTER_SECONDS)
        lane.tell_pump("off")
        _until(lambda: lane.holder() is None, QUIET_SECONDS)
        return recovery(lane.events(), fault_at)

    @staticmethod
    def _victim(lane: Lane, fault: Fault) -> dict[str, Any] | None:
        holder = lane.holder()
        if holder is not None and fault.needs_kept and holder["task"] not in lane.kept:
            return None
        return holder


def _until(probe: Callable[[], object], seconds: float) -> None:
    """Wait for it, but not for ever: what didn't happen is counted, not an error."""
    ends_at = time.monotonic() + seconds
    while not probe() and time.monotonic() < ends_at:
        time.sleep(0.05)


def together(jobs: Sequence[Callable[[], object]]) -> None:
    errors: list[BaseException] = []

    def guarded(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
