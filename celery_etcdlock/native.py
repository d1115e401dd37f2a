"""Real threads and mutexes, also where gevent has replaced Python's by greenlets.

A lease must be renewed while greenlets hog the hub, so the renewal runs in a real thread, and what it shares with the
rest is guarded by real mutexes. Such a mutex is held only for moments, never across I/O: a greenlet that waited for one
would stop its whole hub.
"""

from __future__ import annotations

import os
import sys
import threading
from _thread import LockType
from collections.abc import Callable
from typing import Any


def original(module: str, name: str) -> Any:
    """``module.name`` as it was before gevent patched it, if it did."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched(module):
        return monkey.get_original(module, name)
    __import__(module)
    return getattr(sys.modules[module], name)


def allocate_mutex() -> LockType:
    """A real mutex."""
    mutex: LockType = original("_thread", "allocate_lock")()
    return mutex


def allocate_owned_mutex() -> Any:
    """A real mutex that knows which thread has it, so that a thread that is struck can ``unlock`` it."""
    return original("_thread", "RLock")()


def unlock(mutex: Any) -> None:
    """Release ``mutex`` if this thread has it, however often it acquired it.

    A signal's exception that strikes between the end of a ``with`` block and its exit, or between an ``acquire`` and
    its ``try``, leaves the mutex locked. So code that uses one calls this in a ``finally`` further out.
    """
    while mutex._is_owned():
        mutex.release()


def start_thread(target: Callable[[], None], name: str) -> None:
    """Run ``target`` in a real daemon thread."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        original("_thread", "start_new_thread")(target, ())
    else:
        threading.Thread(target=target, name=name, daemon=True).start()


def process_lives(pid: int) -> bool:
    """Whether there is a process with this id. A zombie counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


class Alarm:
    """Wakes the one real thread that waits for it. Rings that come while nobody waits count as one."""

    def __init__(self) -> None:
        self._lock = allocate_mutex()
        self._lock.acquire()

    def wait(self, timeout_seconds: float | None) -> None:
        """Return when the alarm rings, or after so many seconds (``None``: only then)."""
        self._lock.acquire(timeout=-1 if timeout_seconds is None else min(max(timeout_seconds, 0.0), 3600.0))

    def ring(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:  # it rings already
            return
