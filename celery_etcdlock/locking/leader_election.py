"""Stands for a lock for as long as a process lives: queues for it, holds it, loses it, waits again.

States::

    WAITING ---> HOLDING ---> LEFT ---> WAITING ...
                                `-----> (stopped)

The waiting is done by a thread of its own: an ordinary waiter, woken by a watch. When the lock is ours the thread
hands it over, rings the alarm and sleeps until whoever uses it *leaves*: because it was lost, or because it can't be
used. While etcd is away the thread tries again, without an end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from celery_etcdlock.core.record import Record
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.outcomes import Conflict
from celery_etcdlock.native import Alarm

logger = logging.getLogger("celery_etcdlock")

#: Seconds of one wait. Nobody gives up a beat.
FOREVER = 1e9
#: Seconds between two tries to reach a store that is away.
RETRY_SECONDS = 1.0


@dataclass(eq=False)
class LeaderElection:
    """``alarm`` rings whenever ``lock`` changes. ``on_lost`` is called in another thread when the lock is lost.

    ``on_away`` is called in the thread that waits, with the error of each try that failed.
    """

    manager: LockManager
    name: str
    record: Callable[[], Record]
    ttl_seconds: int
    alarm: Alarm
    on_lost: Callable[[Lock], None]
    on_away: Callable[[LockUnavailable], None]
    #: The lock while it is held and hasn't been left.
    lock: Lock | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._left = Alarm()
        self._pause_seconds = 0.0
        self._stopped = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="celery-etcdlock-candidacy", daemon=True).start()

    def leave(self, pause_seconds: float = 0.0) -> None:
        """Release the lock, or what is left of it, and stand for it again after a pause. Never raises."""
        lock, self.lock = self.lock, None
        if lock is not None:
            self.manager.release(lock)
            self._pause_seconds = pause_seconds
            self._left.ring()

    def stop(self) -> None:
        """Release the lock or the queue position at once. The manager is of no use any more."""
        self._stopped = True
        lock, self.lock = self.lock, None
        if lock is not None:
            self.manager.release(lock)
        self.manager.give_up()
        self._left.ring()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._stand()
            except LockUnavailable as error:
                if not self._stopped:
                    self.on_away(error)
                    self._left.wait(RETRY_SECONDS)
            except Exception:
                logger.exception("celery-etcdlock: waiting for lock %r failed unexpectedly and goes on", self.name)
                self._left.wait(RETRY_SECONDS)

    def _stand(self) -> None:
        lock = self.manager.acquire(
            self.name, self.record(), ttl_seconds=self.ttl_seconds, wait_seconds=FOREVER, on_lost=self._lost
        )
        if isinstance(lock, Conflict):
            return
        self.lock = lock
        self.alarm.ring()
        if self._stopped:
            return
        self._left.wait(None)
        if self._pause_seconds:
            pause, self._pause_seconds = self._pause_seconds, 0.0
            self._left.wait(pause)

    def _lost(self, lock: Lock) -> None:
        self.on_lost(lock)
        self.alarm.ring()
