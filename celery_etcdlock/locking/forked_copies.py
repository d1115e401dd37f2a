"""What a forked copy of a holder may know of the lock: what its holder writes down for it.

A body may fork (``os.fork``, ``multiprocessing``): its copy has the lock's object, but no thread that renews, and hears
of nothing. So just before a fork each lock whose copies may ask (``Lock.copies_may_ask``) gets a few bytes of
memory that both processes see. The holder writes there until when the lock may be trusted, with each renewal, and that
it isn't held any more, as soon as it knows. The copy reads it, and asks whether the holder still runs: the lease of one
that is dead is revoked at once (``child_lease_guardian``).

A copy never renews, never releases and never tells anybody.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import Protocol

from celery_etcdlock.native import process_lives

#: Stands for a deadline where the lock isn't held any more.
NOT_HELD = 0.0


class SharesLocks(Protocol):
    """A session, whose locks are to be shared before each fork."""

    def share_held(self) -> None: ...


_sessions: weakref.WeakSet[SharesLocks] = weakref.WeakSet()
#: Which process forked this one.
_forked_by = 0


class SharedDeadline:
    """Until when a lock may be trusted, on the clock that all processes of a host share."""

    def __init__(self, deadline: float) -> None:
        self._holder = os.getpid()
        self._cell = memoryview(mmap.mmap(-1, 8)).cast("d")
        self._cell[0] = deadline

    def write(self, deadline: float) -> None:
        if os.getpid() == self._holder:
            self._cell[0] = deadline

    def read(self) -> float:
        is_parent = _forked_by == self._holder
        runs = os.getppid() == self._holder if is_parent else process_lives(self._holder)
        return self._cell[0] if runs else NOT_HELD


def share_with_copies(session: SharesLocks) -> None:
    """From now on, each fork shares what is to be known of the locks of ``session``."""
    _sessions.add(session)


def _before_fork() -> None:
    for session in list(_sessions):
        session.share_held()


def _after_fork() -> None:
    global _forked_by
    _forked_by = os.getppid()
    _sessions.clear()  # of the holder: not ours to share


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
