"""Signals of locks, to be connected to like Celery's own::

    @lock_lost.connect
    def page_somebody(sender, name, task_id, reason, **kwargs): ...

``sender`` is the task's name, so ``connect(sender="proj.tasks.sync")`` hears of one task only. A receiver runs where
the event happens, in the process that runs the task: ``lock_lost`` often in the renewal's thread, the others in the
task's. It must return soon, since the task waits for it. What it raises is logged and changes nothing. But a soft time
limit that strikes while a receiver runs ends the task as anywhere else.

A process that is killed sends neither ``lock_released`` nor ``lock_lost``.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

from celery_etcdlock.core.events import LockAcquired, LockConflicted, LockEvent, LockReleased, LockWasLost, facts_of
from celery_etcdlock.interruptions import interrupts

__all__ = ["lock_acquired", "lock_conflict", "lock_lost", "lock_released", "send_signal"]

#: The lock is ours and the task's body is about to run.
lock_acquired = Signal(
    name="lock_acquired", providing_args=["name", "task_id", "fencing_token", "waited_seconds", "record"]
)
#: The holder released the lock, which was its own until then.
lock_released = Signal(
    name="lock_released", providing_args=["name", "task_id", "fencing_token", "held_seconds", "record"]
)
#: Somebody else holds the lock. ``holder`` is its record, or ``None``. A rescheduled task may conflict again.
lock_conflict = Signal(name="lock_conflict", providing_args=["name", "task_id", "holder", "record"])
#: A lock that was ours can't be trusted any more; ``reason`` says why.
lock_lost = Signal(name="lock_lost", providing_args=["name", "task_id", "fencing_token", "reason", "record"])

_SIGNALS: dict[type, Signal] = {
    LockAcquired: lock_acquired,
    LockReleased: lock_released,
    LockConflicted: lock_conflict,
    LockWasLost: lock_lost,
}


def send_signal(event: LockEvent) -> None:
    """A ``Listener`` that sends the signal of each event that has one."""
    signal = _SIGNALS.get(type(event))
    if signal is None or not signal.receivers:
        return  # twice for each lock, mostly for nobody
    facts = {"name": event.name, "task_id": event.record.delivery.task_id, "record": event.record} | facts_of(event)
    for _, answer in signal.send(event.record.task, **facts):
        # Celery hands over what a receiver raised.
        if isinstance(answer, Exception) and interrupts(answer):
            raise answer
