"""Puts the models where production asks for the real things, and observers where something is to be seen.

These are the seams by name; those of time, threads and chance are found by identity (``ambient``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery.app import trace

from celery_etcdlock.app import etcd_locks
from celery_etcdlock.etcd.cluster_identity import ClusterIdentity
from celery_etcdlock.etcd.etcd_inspector import EtcdInspector
from celery_etcdlock.etcd.etcd_store import EtcdStore
from celery_etcdlock.locking import child_lease_guardian, lease_page, session
from celery_etcdlock.locking.group_commit import GroupCommit
from celery_etcdlock.tasks.execution import interruption
from celery_etcdlock.worker import free_never_started, gate
from tests.simulation.etcd import SimTransport
from tests.simulation.scheduler import Scheduler, Thread

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["in_place"]


class _ProcessSignal:
    """A Celery signal as one process has it: its receivers aren't called for others."""

    def __init__(self, real: Any, world: World) -> None:
        self._real = real
        self._world = world
        self.connected: list[Any] = []

    def connect(self, receiver: Any, **options: Any) -> None:
        current = self._world.scheduler.current
        assert current is not None
        process = current.process

        def for_this_process(*args: Any, **kwargs: Any) -> Any:
            now = self._world.scheduler.current
            return receiver(*args, **kwargs) if now is not None and now.process is process else None

        self.connected.append(for_this_process)
        self._real.connect(for_this_process, weak=False)

    def disconnect_all(self) -> None:
        for receiver in self.connected:
            self._real.disconnect(receiver)

    def send(self, *args: Any, **kwargs: Any) -> Any:
        return self._real.send(*args, **kwargs)


class _Means:
    """How an interruption gets into a simulated thread: where it waits, as a signal does."""

    def __init__(self, scheduler: Scheduler) -> None:
        assert scheduler.current is not None
        self._scheduler = scheduler
        self._thread: Thread = scheduler.current

    def send(self) -> None:
        self._scheduler.throw(self._thread, lambda: interruption._next_error(id(self._thread)))

    def clear(self, others_wait: bool) -> None:
        if others_wait:
            self.send()


class _Client:
    """What the inspector asks through: the transport, with a stream that can be asked for one answer."""

    def __init__(self, transport: SimTransport) -> None:
        self.call = transport.call
        self.stream = transport.stream
        self.close = transport.close


@contextmanager
def _patched(target: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)


@contextmanager
def _level(logger: logging.Logger, level: int) -> Iterator[None]:
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Warnings(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "wait_timeout is longer" in text:
            return  # speaks of all tasks of an app, and so of earlier runs'
        current = self._world.scheduler.current
        self._world.ledger.note(f"{current.process.name if current else '?'} logs: {text[:250]}")
        for task_id in self._world.ledger.sent:
            if task_id in text and ("can't be marked as ended" in text or "runs although nobody can say" in text):
                self._world.ledger.unmarked.add(task_id)
            if task_id in text and "runs WITHOUT its lock" in text:
                self._world.ledger.unprotected.add(task_id)
                self._world.ledger.forfeited.add(task_id)
            if task_id in text and "can't be sent back to its queue" in text:
                self._world.ledger.forfeited.add(task_id)  # its claim is given up with the request that got no answer
        if ("couldn't be left to stand" in text or "is lost:" in text) and current is not None:
            # What a run leaves to its retry is released where the store can't be asked, and it says so; a lock that was
            # lost, or that a newer call asked for, isn't left to anybody.
            self._world.ledger.forfeited.update(self._world.jobs_of(current.process))
        if record.exc_info and record.levelno >= logging.ERROR:
            error = record.exc_info[1]
            self._world.ledger.note(f"    {error!r}")


@contextmanager
def in_place(world: World) -> Iterator[None]:
    scheduler = world.scheduler

    def transport() -> SimTransport:
        assert scheduler.current is not None
        return SimTransport(world.etcd, scheduler.current.process, scheduler, world.chance)

    def open_stores(settings: Any) -> Any:
        identity = ClusterIdentity()
        tasks, renewal = (EtcdStore(transport(), settings.prefix, identity=identity) for _ in range(2))
        return GroupCommit(tasks), renewal

    def open_inspector(settings: Any) -> Any:
        return EtcdInspector(_Client(transport()), settings.prefix, settings.timeout)  # type: ignore[arg-type]

    def state_of(pid: int) -> Any:
        process = scheduler.processes.get(pid)
        if process is None or not process.alive:
            return child_lease_guardian._State.GONE
        return child_lease_guardian._State.STOPPED if process.frozen else child_lease_guardian._State.RUNS

    real_hold = session.Session.hold

    def hold(self: Any, lock: Any) -> None:
        real_hold(self, lock)
        world.properties.held(lock)

    per_process = [
        (module, name, _ProcessSignal(getattr(module, name), world))
        for module, name in (
            (free_never_started, "task_revoked"),
            (free_never_started, "task_rejected"),
            (free_never_started, "task_unknown"),
            (free_never_started, "revoked"),
            (gate, "task_received"),
            (gate, "revoked"),
        )
    ]
    logger = logging.getLogger("celery_etcdlock")
    handler = _Warnings(world)
    with ExitStack() as stack:
        for target, name, value in (
            (etcd_locks, "open_stores", open_stores),
            (etcd_locks, "host_name", lambda: scheduler.current.process.host if scheduler.current else "?"),
            (gate, "open_inspector", open_inspector),
            (child_lease_guardian, "_state", state_of),
            (child_lease_guardian, "LOOK_SECONDS", 0.5),
            (lease_page, "PAGE_BYTES", 1 << 11),
            (interruption, "_means_here", lambda: _Means(scheduler)),
            (session.Session, "hold", hold),
            (interruption, "_armed", {}),
            *per_process,
        ):
            stack.enter_context(_patched(target, name, value))
        # As in a worker, where Celery's own __call__ keeps the message's request.
        trace._install_stack_protection()
        stack.callback(trace.reset_worker_optimizations, SimpleNamespace())
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)
        stack.enter_context(_patched(logger, "propagate", False))
        stack.enter_context(_level(logging.getLogger("celery"), logging.CRITICAL + 1))
        for _, _, signal in per_process:
            stack.callback(signal.disconnect_all)
        yield
