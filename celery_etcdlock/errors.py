"""Every error a user can meet, under one root.

Three things that callers must be able to tell apart are three classes: a *conflict* (somebody else
holds the lock: the protocol worked), an *outage* (nobody can know who holds it) and a *loss* (it was
ours and can't be trusted any more). Wrong options, settings and keys are a fourth kind: mistakes in
code or configuration, found before any lock is asked for wherever that is possible.

Each of them survives pickling, because Celery carries task errors between processes.
"""

from __future__ import annotations

from typing import Any


class EtcdLockError(Exception):
    """Root of all errors of celery-etcdlock."""


class LockConflict(EtcdLockError):
    """Somebody else holds the lock.

    ``name`` is the lock's name, ``holder`` one line that says who holds it and since when, and ``task_id`` the
    holder's, where it is a message that somebody published. Nothing is wrong: run later, or choose another
    ``on_conflict``.
    """

    def __init__(self, name: str, holder: str = "unknown holder", task_id: str | None = None) -> None:
        super().__init__(*((name, holder) if task_id is None else (name, holder, task_id)))
        self.name = name
        self.holder = holder
        self.task_id = task_id

    def __str__(self) -> str:
        return f"lock {self.name!r} is held by {self.holder}"


class LockUnavailable(EtcdLockError):
    """The lock store couldn't be asked, or didn't answer in time, so nobody knows who holds the lock.

    ``maybe_applied`` is true when the request may have taken effect, now or later, although no answer
    came. ``permanent`` is true when trying again can't help until someone mends the configuration (a wrong
    password, a certificate that doesn't verify, a missing permission).
    """

    def __init__(self, message: str, *, maybe_applied: bool = False, permanent: bool = False) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied
        self.permanent = permanent

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, self.__dict__


class LockLost(EtcdLockError):
    """The lock was ours and can't be trusted any more: somebody else may hold it now.

    Stop writing. Work that is guarded by the fencing token is safe: its resource refuses us once the next
    owner has written.
    """

    #: Raised in a task's body from outside, whatever it did just then.
    thrown_in = False

    def __init__(self, name: str, reason: str = "its deadline has passed") -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"lock {self.name!r} is lost: {self.reason}"


class NotLocked(EtcdLockError, LookupError):
    """``current_lock()`` was called where no lock is held: outside the body of a locked task."""


class InvalidOption(EtcdLockError, ValueError):
    """An option of a task is unknown, has a wrong value, or contradicts another; the message names it."""


class InvalidSetting(EtcdLockError, ValueError):
    """An ``etcdlock_*`` setting is unknown or has a wrong type or value; the message names it."""


class InvalidKey(EtcdLockError, ValueError):
    """The lock's key can't be made from this call's arguments; the message names the argument and the remedy."""
