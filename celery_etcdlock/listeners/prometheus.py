"""Prometheus metrics of locks, in ``prometheus_client``'s default registry: ``etcdlock_listeners = ["prometheus"]``.

They are counted where tasks run. With the prefork pool that is in many processes, so set ``PROMETHEUS_MULTIPROC_DIR``
and expose them from the MainProcess, as ``prometheus_client`` describes under "Multiprocess Mode".

The only label is the task's name: a lock's name may hold arguments, of which there is no end.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import REGISTRY as DEFAULT_REGISTRY
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from celery_etcdlock.core import events as lock_events

PREFIX = "celery_etcdlock"
WAIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300)
LATE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)
HELD_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600)


class PrometheusListener:
    """Counts into ``registry``."""

    def __init__(self, registry: CollectorRegistry = DEFAULT_REGISTRY) -> None:
        def counter(name: str, what: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", what, ["task"], registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", what, ["task"], registry=registry, buckets=buckets)

        self._acquired = counter("acquired", "Locks acquired")
        self._released = counter("released", "Locks released")
        self._conflicts = counter("conflicts", "Acquires that met another holder, comebacks included")
        self._lost = counter("lost", "Locks that were lost while they were held")
        self._deduplicated = counter("deduplicated", "Tasks that ended without having run, because of their lock")
        self._ticks = counter("beat_ticks", "Due tasks that the beat at work sent")
        self._takeovers = counter("beat_takeovers", "Times that this process became the beat at work")
        self._late_seconds = histogram("beat_late_seconds", "How late a due task was sent", LATE_BUCKETS)
        self._held = Gauge(f"{PREFIX}_held", "Locks held now", ["task"], registry=registry, multiprocess_mode="livesum")
        self._wait_seconds = histogram("wait_seconds", "Time until a lock was acquired", WAIT_BUCKETS)
        self._held_seconds = histogram("held_seconds", "Time that a lock was held", HELD_BUCKETS)

    def __call__(self, event: lock_events.LockEvent, /) -> None:
        task = event.record.task
        match event:
            case lock_events.LockAcquired():
                self._acquired.labels(task).inc()
                self._held.labels(task).inc()
                self._wait_seconds.labels(task).observe(event.waited_seconds)
            case lock_events.LockReleased():
                self._released.labels(task).inc()
                self._held.labels(task).dec()
                self._held_seconds.labels(task).observe(event.held_seconds)
            case lock_events.LockWasLost():
                self._lost.labels(task).inc()
                self._held.labels(task).dec()
            case lock_events.LockConflicted():
                self._conflicts.labels(task).inc()
            case lock_events.TickSent():
                self._ticks.labels(task).inc()
                self._late_seconds.labels(task).observe(event.late_seconds)
            case lock_events.BeatTookOver():
                self._takeovers.labels(task).inc()
            case lock_events.TaskDeduplicated():
                self._deduplicated.labels(task).inc()


@cache
def listener() -> lock_events.Listener:
    """The one listener of the default registry, which refuses the same metric twice."""
    return PrometheusListener()
