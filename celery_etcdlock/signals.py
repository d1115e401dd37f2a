"""Signals of locks, to be connected to like Celery's own::

    @lock_lost.connect
    def page_somebody(sender, name, task_id, reason, **kwargs): ...

``sender`` is the task's name, so ``connect(sender="proj.tasks.sync")`` hears of one task only. A receiver runs where
the event happens, in the process that runs the task: ``lock_lost`` often in the renewal's thread, the others in the
task's.
It must return soon, since the next step of the task waits for it; what it raises is logged and changes nothing. But a
soft time limit that strikes while a receiver runs ends the task as anywhere else.

A receiver isn't told of what nobody sees: a process that is killed sends neither ``lock_released`` nor ``lock_lost``.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

from celery_etcdlock.core.events import LockAcquired, LockConflicted, LockEvent, LockReleased, LockWasLost
from celery_etcdlock.interruptions import interrupts

__all__ = ["lock_acquired", "lock_conflict", "lock_lost", "lock_released", "send_signal"]

#: The lock is ours and the task's body is about to run.
lock_acquired = Signal(
    name="lock_acquired", providing_args=["name", "task_id", "fencing_token", "waited_seconds", "record"]
)
#: The lock was let go by its holder, and was its own until then.
lock_released = Signal(
    name="lock_released", providing_args=["name", "task_id", "fencing_token", "held_seconds", "record"]
)
#: Somebody else holds the lock. ``holder`` is its record, or ``None``. A task that comes back may conflict again.
lock_conflict = Signal(name="lock_conflict", providing_args=["name", "task_id", "holder", "record"])
#: A lock that was ours can't be trusted any more; ``reason`` says why.
lock_lost = Signal(name="lock_lost", providing_args=["name", "task_id", "fencing_token", "reason", "record"])


def send_signal(event: LockEvent) -> None:
    """A ``Listener`` that sends the signal of each event that has one."""
    facts = {"name": event.name, "task_id": event.record.delivery.task_id, "record": event.record}
    sender = event.record.task
    match event:
        case LockAcquired():
            facts |= {"fencing_token": event.fencing_token, "waited_seconds": event.waited_seconds}
            answers = lock_acquired.send(sender, **facts)
        case LockReleased():
            facts |= {"fencing_token": event.fencing_token, "held_seconds": event.held_seconds}
            answers = lock_released.send(sender, **facts)
        case LockConflicted():
            answers = lock_conflict.send(sender, holder=event.holder, **facts)
        case LockWasLost():
            answers = lock_lost.send(sender, fencing_token=event.fencing_token, reason=event.reason, **facts)
        case _:
            return
    for _, answer in answers:
        # Celery hands over what a receiver raised.
        if isinstance(answer, Exception) and interrupts(answer):
            raise answer
