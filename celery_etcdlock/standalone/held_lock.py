"""What ``with`` gives, and ``held``: one holding, for its holder and the threads that help it."""

from __future__ import annotations

from collections.abc import Callable

from celery_etcdlock.errors import LockLost
from celery_etcdlock.locking.lock import Held, Lock


class TakenLocks(Held):
    """What one acquire got: one lock, or several that were taken together."""

    def __init__(self, name: str, locks: list[Lock]) -> None:
        #: The lock's name; of several, all of them.
        self.name = name
        self.locks = locks

    @property
    def fencing_token(self) -> int:
        """Rises strictly with every new ownership of the name; let the resource refuse lower ones."""
        return max(lock.fencing_token for lock in self.locks)

    @property
    def remaining(self) -> float:
        """Seconds for which the lock may be trusted if it weren't renewed any more; 0 once it can't be."""
        return min(lock.remaining for lock in self.locks)

    @property
    def lost_reason(self) -> str | None:
        """Why it can't be trusted; ``None`` while it can."""
        return next((reason for lock in self.locks if (reason := lock.lost_reason) is not None), None)

    def check(self) -> None:
        """Raise ``LockLost`` once the lock can't be trusted any more. Costs no network."""
        reason = self.lost_reason
        if reason is not None:
            raise LockLost(self.name, reason)


class HeldLock(TakenLocks):
    """One holding of a lock: from when it was acquired until it is released or lost, whichever comes first.

    Each caller of the lock object sees its own holding; this is the same one in the whole process. Pass it to a helper
    thread, which calls ``check()`` before it writes. In a forked child it can't be trusted.
    """

    def __init__(self, taken: TakenLocks, etcd_key: Callable[[TakenLocks], bytes]) -> None:
        super().__init__(taken.name, taken.locks)
        self._etcd_key = etcd_key  # the lock object's own, which therefore isn't dropped while somebody has this

    @property
    def key(self) -> bytes:
        """The lock's key in etcd: it is there, with ``fencing_token`` as its mod revision, while the lock is ours.

        So a transaction of your own can be guarded by the lock. Raises ``EtcdLockError`` for several names, and where
        the locks aren't in an etcd.
        """
        return self._etcd_key(self)
