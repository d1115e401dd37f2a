"""The lock object of threads and greenlets."""

from __future__ import annotations

import sys
import threading
from functools import cache
from types import FrameType, TracebackType
from typing import Any, NoReturn

from celery_etcdlock.locking.lock_holder import LockHolder, holder_of
from celery_etcdlock.locking.outcomes import Conflict
from celery_etcdlock.locking.store_access import StoreAccess, run_at_once
from celery_etcdlock.standalone import argument_checks
from celery_etcdlock.standalone.held_lock import HeldLock
from celery_etcdlock.standalone.holdings import Holding
from celery_etcdlock.standalone.named_lock import NamedLock, place_of, warn_of_dropped
from celery_etcdlock.standalone.process_access import ProcessAccess


class _Here:
    """One thread (or greenlet). It is in a thread-local, and so ends with its thread."""

    __slots__ = ("__weakref__", "acquired")

    def __init__(self) -> None:
        #: What it acquired by calls, so that nobody else can release it.
        self.acquired: list[Holding] = []

    def __del__(self) -> None:
        for holding in self.acquired:
            warn_of_dropped(holding.drop("a thread ended that held it"))


@cache
def _local_of(flavour: type[threading.local]) -> Any:
    """The one thread-local of all lock objects; ``flavour`` is another class once gevent has patched ``threading``."""
    return flavour()


class EtcdLock(NamedLock):
    """A lock without a task, which competes with tasks and with others for its name. By ``EtcdLocks.lock``.

    Any number of threads or greenlets may share one object, as they share a ``threading.Lock``. Each acquire is its
    own: ``owned``, ``lost``, ``remaining``, ``fencing_token``, ``check`` and ``release`` are about what the calling
    thread holds. Waiters of one process are served in order, and have one queue position in the store. It isn't
    reentrant.

    ``with lock as held:`` acquires, waiting for ``wait_timeout``. It raises ``LockConflict`` when somebody else keeps
    the lock, and ``LockUnavailable`` when the store can't be asked. A block that lost its lock ends with ``LockLost``.
    ``held`` is this holding, for helper threads.
    """

    def _caller(self) -> _Here:
        local = _local_of(threading.local)
        try:
            here: _Here = local.here
        except AttributeError:
            here = local.here = _Here()
        return here

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Acquire the lock. Returns whether that worked. Release it in a ``finally``, in the same thread.

        ``timeout`` is how many seconds to wait: 0 tries once; ``None`` is the object's ``wait_timeout``, which may
        itself be ``None``, for ever. ``blocking=False`` tries once. Raises ``LockUnavailable``, and ``EtcdLockError``
        if this thread holds it already.
        """
        seconds = argument_checks.seconds_to_wait(blocking, timeout, self._wait_seconds)
        return isinstance(self._acquire_here(seconds, None, sys._getframe(1)), Holding)

    def release(self) -> None:
        """Release what this thread holds.

        Raises ``NotLocked`` if it holds nothing, and ``LockLost`` if it was lost: then others may have run beside it.
        An unreachable store raises nothing: a release that can't be confirmed is repeated until it is.
        """
        self._end_with(self._to_release().release())

    def __enter__(self) -> HeldLock:
        frame = sys._getframe(1)
        return self._entered(self._acquire_here(self._wait_seconds, frame, frame))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        holding = self._to_leave(self._caller(), sys._getframe(1), error)
        if holding is not None:
            self._end_with(holding.release(), error)

    def _acquire_here(self, seconds: float, block: FrameType | None, frame: FrameType) -> Holding | Conflict:
        return run_at_once(self._acquire(self._home.access(), self._caller(), seconds, block, place_of(frame)))

    def _asking(self, access: ProcessAccess) -> StoreAccess:
        return access.blocking

    def _acquired_by_call(self, holding: Holding, caller: _Here) -> None:
        caller.acquired = [*(other for other in caller.acquired if not other.ended), holding]

    def _interrupted(self, holding: Holding) -> None:
        holding.release()

    async def __aenter__(self) -> NoReturn:
        raise TypeError(
            f"lock {self.name!r} blocks its thread, and with it the event loop. In async code: async with "
            f"EtcdLocks.from_app(app).alock({self.name!r})"
        )

    async def __aexit__(self, *_: Any) -> None: ...

    def locked(self) -> bool:
        """Whether anybody holds the lock; of several names, any of them. Raises ``LockUnavailable``."""
        return self.holder is not None

    @property
    def holder(self) -> LockHolder | None:
        """Who holds the lock now, since when and for what; ``None`` if nobody does. Raises ``LockUnavailable``."""
        look = self._home.access().manager.claims.look
        return next((holder_of(keys) for name in self._names if (keys := look(name))), None)
