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

#: What is counted of each kind of event: the counter's name, and its meaning.
COUNTERS: dict[type, tuple[str, str]] = {
    lock_events.LockAcquired: ("acquired", "Locks acquired"),
    lock_events.LockReleased: ("released", "Locks released"),
    lock_events.LockConflicted: ("conflicts", "Acquires that met another holder, comebacks included"),
    lock_events.LockWasLost: ("lost", "Locks that were lost while they were held"),
    lock_events.TaskDeduplicated: ("deduplicated", "Tasks that ended without having run, because of their lock"),
    lock_events.TickSent: ("beat_ticks", "Due tasks that the beat at work sent"),
    lock_events.BeatTookOver: ("beat_takeovers", "Times that this process became the beat at work"),
}


class PrometheusListener:
    """Counts into ``registry``."""

    def __init__(self, registry: CollectorRegistry = DEFAULT_REGISTRY) -> None:
        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", what, ["task"], registry=registry, buckets=buckets)

        self._counters = {
            kind: Counter(f"{PREFIX}_{name}", what, ["task"], registry=registry)
            for kind, (name, what) in COUNTERS.items()
        }
        self._late_seconds = histogram("beat_late_seconds", "How late a due task was sent", LATE_BUCKETS)
        self._held = Gauge(f"{PREFIX}_held", "Locks held now", ["task"], registry=registry, multiprocess_mode="livesum")
        self._wait_seconds = histogram("wait_seconds", "Time until a lock was acquired", WAIT_BUCKETS)
        self._held_seconds = histogram("held_seconds", "Time that a lock was held", HELD_BUCKETS)

    def __call__(self, event: lock_events.LockEvent, /) -> None:
        task = event.record.task
        counter = self._counters.get(type(event))
        if counter is not None:
            counter.labels(task).inc()
        match event:
            case lock_events.LockAcquired():
                self._held.labels(task).inc()
                self._wait_seconds.labels(task).observe(event.waited_seconds)
            case lock_events.LockReleased():
                self._held.labels(task).dec()
                self._held_seconds.labels(task).observe(event.held_seconds)
            case lock_events.LockWasLost():
                self._held.labels(task).dec()
            case lock_events.TickSent():
                self._late_seconds.labels(task).observe(event.late_seconds)


@cache
def listener() -> lock_events.Listener:
    """The one listener of the default registry, which refuses the same metric twice."""
    return PrometheusListener()
