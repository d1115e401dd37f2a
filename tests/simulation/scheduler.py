"""Virtual time, and one thread at a time: who runs next is decided here, by a seed.

A *thread* is a greenlet; it runs until it sleeps, parks or asks to be switched. What is due at one moment runs in
random order. A thread belongs to a *process*, which may be frozen (its threads don't run, time goes on) or dead (they
never run again; nothing of theirs is unwound, as after a ``kill -9``).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import greenlet

__all__ = ["EPOCH", "Process", "Scheduler", "Thread", "WorldIsOver"]

#: The wall clock of a host without an offset when its boot clock shows 0.
EPOCH = 1_800_000_000.0


class WorldIsOver(BaseException):
    """Thrown into what still waits when a run is over."""


class Process:
    """One simulated process. ``wall_offset``: what its host's wall clock is ahead of the true time, in seconds."""

    def __init__(self, name: str, pid: int, wall_offset: float = 0.0, host: str = "host") -> None:
        self.name = name
        self.pid = pid
        self.wall_offset = wall_offset
        self.host = host
        self.alive = True
        self.frozen = False
        self.deferred: list[tuple[Thread, int]] = []
        self.threads: list[Thread] = []
        #: Called when a thread of this process is about to run.
        self.on_switch: Callable[[Thread], None] | None = None

    def __repr__(self) -> str:
        return self.name


class Thread:
    """One thread of a process. ``ticket`` tells its newest wake-up from those that are stale."""

    def __init__(self, process: Process, name: str, run: Callable[[], Any], hub: Any) -> None:
        self.process = process
        self.name = name
        self.ticket = 0
        self.unparked = False
        self.strikes: list[Callable[[], BaseException | None]] = []
        self.greenlet = greenlet.greenlet(run, hub)
        self.done = False

    def __repr__(self) -> str:
        return f"{self.process.name}/{self.name}"


class Scheduler:
    """See the module. ``chance`` is the one source of randomness."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.current: Thread | None = None
        self.steps = 0
        self.over = False
        self.after_step: Callable[[], None] = lambda: None
        #: How likely a thread is switched where it takes a mutex: the finest grain of interleaving.
        self.mutex_switches = 0.02
        self._heap: list[tuple[float, float, int, Thread, int]] = []
        self._number = 0
        self._hub = greenlet.getcurrent()
        self._pids = 1000
        self.errors: list[tuple[Thread, BaseException]] = []
        self.processes: dict[int, Process] = {}

    # --- processes and threads ------------------------------------------------------------------------------------

    def process(self, name: str, wall_offset: float = 0.0, host: str = "host") -> Process:
        self._pids += 1
        process = Process(name, self._pids, wall_offset, host)
        self.processes[process.pid] = process
        return process

    def spawn(self, process: Process, name: str, target: Callable[[], Any], delay: float = 0.0) -> Thread:
        def run() -> None:
            try:
                target()
            except (WorldIsOver, greenlet.GreenletExit):
                pass
            except BaseException as error:
                self.errors.append((thread, error))
            finally:
                thread.done = True

        thread = Thread(process, name, run, self._hub)
        process.threads.append(thread)
        self._schedule(thread, self.now + delay)
        return thread

    def kill(self, process: Process) -> None:
        process.alive = False
        process.deferred.clear()

    def freeze(self, process: Process) -> None:
        process.frozen = True

    def thaw(self, process: Process) -> None:
        process.frozen = False
        deferred, process.deferred = process.deferred, []
        for thread, ticket in deferred:
            self._push(self.now, thread, ticket)

    def throw(self, thread: Thread, strike: Callable[[], BaseException | None]) -> None:
        """Have ``strike`` called in the thread, where it is, now. It says what to raise there, if anything."""
        if thread.done or not thread.process.alive:
            return
        thread.strikes.append(strike)
        if thread is not self.current:
            self._schedule(thread, self.now)

    # --- for the threads ------------------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        thread = self._running()
        thread.unparked = False
        self._wait(thread, self.now + max(0.0, seconds))

    def switch(self) -> None:
        """Let others run that are due now."""
        self.sleep(0.0)

    def park(self, timeout: float | None) -> bool:
        """Until ``unpark``, or the time is over; says which."""
        thread = self._running()
        thread.unparked = False
        self._wait(thread, None if timeout is None else self.now + max(0.0, timeout))
        return thread.unparked

    def unpark(self, thread: Thread) -> None:
        thread.unparked = True
        self._schedule(thread, self.now)

    def _running(self) -> Thread:
        if self.current is None:
            raise RuntimeError("only a simulated thread can wait")
        if self.over:
            raise WorldIsOver
        return self.current

    def _wait(self, thread: Thread, until: float | None) -> None:
        while True:
            thread.ticket += 1
            if until is not None:
                self._push(until, thread, thread.ticket)
            self._hub.switch()
            if self.over:
                raise WorldIsOver
            while thread.strikes:
                error = thread.strikes.pop(0)()
                if error is not None:
                    raise error
            if thread.unparked or (until is not None and self.now >= until):
                return

    def _schedule(self, thread: Thread, at: float) -> None:
        thread.ticket += 1
        self._push(at, thread, thread.ticket)

    def _push(self, at: float, thread: Thread, ticket: int) -> None:
        self._number += 1
        heapq.heappush(self._heap, (at, self.chance.random(), self._number, thread, ticket))

    # --- the loop -------------------------------------------------------------------------------------------------

    def run_until(self, end: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Let things happen until ``end`` on the boot clock, or until ``stop`` says so."""
        heap = self._heap
        while heap and heap[0][0] <= end and not stop():
            at, _, _, thread, ticket = heapq.heappop(heap)
            process = thread.process
            if ticket != thread.ticket or thread.done or not process.alive:
                continue
            if process.frozen:
                process.deferred.append((thread, ticket))
                continue
            self.now = max(self.now, at)
            self._resume(thread)
            self.steps += 1
            self.after_step()
        if not stop():
            self.now = max(self.now, end)

    def _resume(self, thread: Thread) -> None:
        process = thread.process
        if process.on_switch is not None:
            process.on_switch(thread)
        self.current = thread
        try:
            thread.greenlet.switch()
        finally:
            self.current = None

    def finish(self) -> None:
        """Unwind all that still waits. What it does on its way out counts for nothing."""
        self.over = True
        for process in self.processes.values():
            for thread in process.threads:
                if not thread.done and thread.greenlet:
                    self.current = thread
                    with suppress(BaseException):
                        thread.greenlet.throw(WorldIsOver())
        self.current = None
        # An app's mutex outlives the run, and must not keep its processes.
        self.processes.clear()
        self.errors.clear()
        self._heap.clear()
