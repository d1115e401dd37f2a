"""What the lock objects for threads and for event loops share: acquiring, losing, and what a caller sees.

See the package for the states. Nothing that a caller sees of its lock costs a request, except who holds it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from celery_etcdlock.core.value_checks import whole_number, whole_seconds
from celery_etcdlock.errors import EtcdLockError, LockLost, NotLocked
from celery_etcdlock.locking.acquisition import AcquireRequest
from celery_etcdlock.locking.cancel_wait import WaitCancellation
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.lock_holder import conflict_error
from celery_etcdlock.locking.outcomes import Conflict
from celery_etcdlock.locking.store_access import StoreAccess
from celery_etcdlock.standalone import argument_checks
from celery_etcdlock.standalone.held_lock import HeldLock, TakenLocks
from celery_etcdlock.standalone.holdings import Holding, Holdings, Place
from celery_etcdlock.standalone.process_access import LocksOfApp, ProcessAccess

logger = logging.getLogger("celery_etcdlock")

OnLost = Callable[[HeldLock], object]

#: Made once, since a lock object is made for each acquire.
at_least_one = whole_number(1)


class NamedLock(ABC):
    """See the module. Raises ``ValueError`` for an argument that is wrong."""

    #: What a caller is called in errors.
    caller_kind = "thread"

    def __init__(
        self,
        home: LocksOfApp,
        name: str | Sequence[str],
        *,
        wait_timeout: float | None = 0.0,
        lock_ttl: int | None = None,
        limit: int = 1,
        note: str | None = None,
        on_lost: OnLost | None = None,
    ) -> None:
        # First, since __del__ comes after an error here, too.
        self._holdings = Holdings()
        self._home = home
        self._names = argument_checks.names_in(name)
        #: The lock's name; of several, all of them.
        self.name = ", ".join(self._names)
        self._wait_seconds = argument_checks.wait_seconds(wait_timeout)
        self._lock_ttl = None if lock_ttl is None else argument_checks.checked("lock_ttl", whole_seconds, lock_ttl)
        self._limit = argument_checks.checked("limit", at_least_one, limit)
        self._note = argument_checks.check_note(note)
        self._on_lost = argument_checks.check_on_lost(on_lost)
        #: Those who wait, and how to stop them.
        self._waiting: list[tuple[Any, WaitCancellation]] = []

    @abstractmethod
    def _caller(self) -> Any:
        """An object for the calling thread or task, which dies with it."""

    def owned(self) -> bool:
        """Whether the caller holds the lock and may trust it. Costs no network."""
        mine = self._mine()
        return mine is not None and mine.lost_reason is None

    @property
    def lost(self) -> bool:
        """Whether the caller can't rely on the lock: it is lost, or released, or was never the caller's."""
        return not self.owned()

    @property
    def remaining(self) -> float:
        """Seconds for which the caller may trust the lock if it weren't renewed any more; 0 if it doesn't hold it."""
        mine = self._mine()
        return 0.0 if mine is None else mine.remaining

    @property
    def fencing_token(self) -> int:
        """Of the caller's holding: rises strictly with every new ownership of the name. Raises ``NotLocked``."""
        return self._needed().fencing_token

    @property
    def held(self) -> HeldLock:
        """The caller's holding, for instance to hand it to a thread that helps. Raises ``NotLocked``."""
        return HeldLock(self._needed(), self._etcd_key)

    @property
    def key(self) -> bytes:
        """As ``HeldLock.key``, of the caller's holding. Raises ``NotLocked``."""
        return self._etcd_key(self._needed())

    def check(self) -> None:
        """Raise ``LockLost`` if the caller's lock can't be trusted any more, ``NotLocked`` if it holds none."""
        self._needed().check()

    def cancel(self) -> None:
        """End all waits of this object: ``acquire`` returns False there, ``with`` raises ``LockConflict``.

        Call it from any thread. It doesn't touch the holder, and later calls wait as usual.
        """
        for _, stop in list(self._waiting):
            stop.stop()

    def _mine(self) -> Holding | None:
        return self._holdings.of(self._caller())

    def _needed(self) -> Holding:
        caller = self._caller()
        mine = self._holdings.of(caller)
        if mine is None:
            raise self._not_locked(caller)
        return mine

    def _not_locked(self, caller: Any) -> NotLocked:
        if self._holdings.of(caller, inherited=True) is not None:
            why = "is held by the process that this one was forked from, and can't be used or released here"
        elif self._holdings.all():
            why = f"isn't held by this {self.caller_kind}, but by another one of this object: only its holder may"
        else:
            why = f"isn't held by this {self.caller_kind}: it was never acquired, or is released already"
        return NotLocked(f"lock {self.name!r} {why}")

    def _etcd_key(self, taken: TakenLocks) -> bytes:
        if len(taken.locks) != 1:
            raise EtcdLockError(f"lock {self.name!r} has several keys: make a lock for each name to guard by one")
        (lock,) = taken.locks
        return self._home.etcd_key(lock.name, lock.token)

    async def _acquire(
        self, access: ProcessAccess, caller: Any, wait: float, block: FrameType | None, where: Place
    ) -> Holding | Conflict:
        """One acquire for ``caller``. If interrupted, it leaves nothing behind."""
        self._check_free(caller)
        holding = Holding(self.name, caller, block, where, access.manager)
        stop = WaitCancellation()
        entry = (caller, stop)
        try:
            self._waiting.append(entry)
            request = AcquireRequest(
                self._names,
                self._home.record(access.owner, self._note or self.name, self._limit),
                self._lock_ttl or self._home.settings.ttl,
                wait,
                on_held=holding.locks.append,
                on_lost=None if self._on_lost is None else self._tells_of_loss(holding),
                stop=stop,
            )
            outcome = await access.local_waiters.acquire(self._asking(access), request)
            if isinstance(outcome, Conflict):
                return outcome
            self._holdings.add(holding)
            if block is None:
                self._acquired_by_call(holding, caller)
            return holding
        except BaseException:
            self._holdings.remove(holding)
            self._interrupted(holding)
            raise
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def _entered(self, outcome: Holding | Conflict) -> HeldLock:
        """What a ``with`` block gets. Raises ``LockConflict``."""
        if isinstance(outcome, Conflict):
            raise conflict_error(outcome)
        return HeldLock(outcome, self._etcd_key)

    @abstractmethod
    def _asking(self, access: ProcessAccess) -> StoreAccess:
        """How the caller waits for the store."""

    @abstractmethod
    def _acquired_by_call(self, holding: Holding, caller: Any) -> None:
        """Have it released, with a warning, when the caller ends and hasn't done so: no block does."""

    def _interrupted(self, holding: Holding) -> None:
        """Release what an interrupted acquire got; by default without making the caller wait."""
        holding.abandon()

    def _check_free(self, caller: Any) -> None:
        """Raise ``EtcdLockError`` where the caller would wait for itself.

        What it lost doesn't count, but may still be there: an operator asked for it.
        """
        mine = self._holdings.of(caller)
        if mine is not None and mine.lost_reason is None:
            file, line = mine.place
            raise EtcdLockError(
                f"lock {self.name!r}: this {self.caller_kind} holds it already (acquired at {file}:{line}). It isn't "
                f"reentrant: release it first{'' if self._limit > 1 else ', or give a semaphore a limit=N'}. If that "
                "is another piece of work, give it a lock object of its own"
            )
        if mine is not None and mine.block is None:
            self._holdings.remove(mine)
            mine.abandon()
        if self._waiting and any(waiting is caller for waiting, _ in list(self._waiting)):
            raise EtcdLockError(
                f"lock {self.name!r}: this {self.caller_kind} waits for it already. Await that acquire first"
            )

    def _tells_of_loss(self, holding: Holding) -> Callable[[Lock], None]:
        """For the renewal's thread. It keeps neither the object nor its holding alive."""
        me, its = weakref.ref(self), weakref.ref(holding)

        def lost(_: Lock) -> None:
            lock, holding = me(), its()
            if lock is not None and holding is not None and lock._on_lost is not None and not holding.ended:
                lock._tell_lost(holding, HeldLock(holding, lock._etcd_key))

        return lost

    def _tell_lost(self, holding: Holding, held: HeldLock) -> None:
        """In the renewal's thread, which must go on."""
        assert self._on_lost is not None
        self._on_lost(held)

    def _to_release(self) -> Holding:
        """The caller's, which ``release`` ends. Raises ``NotLocked``."""
        mine = self._needed()
        if mine.block is None:  # the end of a block finds it as released
            self._holdings.remove(mine)
        return mine

    def _to_leave(self, caller: Any, block: FrameType, error: BaseException | None) -> Holding | None:
        """The holding whose block ends with ``error``; ``None`` when there is nothing to release."""
        holding = self._holdings.to_leave(caller, block)
        problem: EtcdLockError
        if holding is None:
            problem = self._not_locked(caller)
        else:
            self._holdings.remove(holding)
            if holding.is_inherited:
                problem = LockLost(self.name, holding.lost_reason or "this process is a fork of its holder")
            elif holding.ended:
                problem = NotLocked(f"lock {self.name!r} was released inside of its block already")
            else:
                return holding
        self._end_with(problem, error)
        return None

    def _end_with(self, problem: EtcdLockError | None, error: BaseException | None = None) -> None:
        """End with ``problem``, if any. An exception that is under way goes on, with the problem as a note."""
        if problem is None or isinstance(error, LockLost):
            return  # or it says so already
        if error is None:
            raise problem
        note = f"celery-etcdlock: and {problem}"
        if hasattr(error, "add_note"):  # from Python 3.11 on
            error.add_note(note)
        logger.error("%s (while %s ended its block)", note, type(error).__name__)

    def __del__(self) -> None:
        for holding in self._holdings.all():
            warn_of_dropped(holding.drop("its lock object was dropped while it held it"))

    def __reduce__(self) -> Any:
        raise TypeError(
            f"lock {self.name!r} can't be pickled or copied: make one where it is needed, by EtcdLocks.from_app(app)"
            f".{self._factory}({self.name!r}). To lock a task by its arguments, give the task a lock_key or unique_on"
        )

    _factory = "lock"

    def __repr__(self) -> str:
        mine = self._mine()
        state = "not held here" if mine is None else repr(HeldLock(mine, self._etcd_key))
        return f"<{type(self).__name__} {self.name!r} {state}>"


def warn_of_dropped(warning: str | None) -> None:
    """In a finalizer, where nothing may be raised."""
    if warning is not None and not sys.is_finalizing():
        with contextlib.suppress(Exception):
            warnings.warn(warning, ResourceWarning, stacklevel=3)


def place_of(frame: FrameType) -> Place:
    """File and line, for people."""
    return frame.f_code.co_filename, frame.f_lineno
