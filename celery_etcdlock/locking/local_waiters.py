"""Those of one process that wait for the same lock: one of them waits in the store's queue, the others behind it.

A queue position in the store costs a key, and waiting there a watch. So the callers of one process queue here first, in
order of arrival, whatever they are (threads, greenlets, coroutines of an event loop), and only the first of them is in
the store's queue. As soon as it has the lock, or gives up, the next one queues there. So a process has one position
in each queue, besides those of its holders: processes take turns, and within a process callers do.

States of a caller::

    QUEUED --> FIRST --> owned | conflict      its turn: it contends with other processes
           --> conflict                        its time is over, or it was stopped, before its turn

*Failure.* Whoever leaves, by whatever exception, has the next one go first. Should even that be cut off (an exception
that is thrown into the very leaving), the queue knows its callers only weakly: one that is gone is passed over when
those behind it look again.

*Several locks at once* have no queue in the store, since one who waited in two would hold the first while it waits for
the second. The first caller tries, waits for a change of whatever was in its way, and tries again.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence

from celery_etcdlock.core.operations import AwaitChange
from celery_etcdlock.locking.acquisition import AcquireRequest
from celery_etcdlock.locking.cancel_wait import WaitCancellation
from celery_etcdlock.locking.clock import Clock, boot_time
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.outcomes import Conflict
from celery_etcdlock.locking.store_access import Bell, StoreAccess
from celery_etcdlock.native import allocate_mutex

#: Seconds after which a queued caller looks whether those before it are still there.
LOOK_SECONDS = 5.0

#: Seconds between two tries for several locks, where nobody can say what to wait for, or for whom it may take long.
RETRY_SECONDS = 0.05
LONGEST_WATCH_SECONDS = 15.0


class _Caller:
    """One that wants a lock. Known to the queue by a weak reference."""

    def __init__(self, bell: Bell) -> None:
        self.bell = bell


class LocalWaiters:
    """See the module. One for each manager."""

    def __init__(self, manager: LockManager, clock: Clock = boot_time) -> None:
        self._manager = manager
        self._clock = clock
        self._mutex = allocate_mutex()  # held for moments only
        self._queues: dict[tuple[str, ...], OrderedDict[int, weakref.ref[_Caller]]] = {}

    async def acquire(self, asking: StoreAccess, request: AcquireRequest) -> list[Lock] | Conflict:
        """Own all locks of ``request``, or none and say who has one. Waits also for several, and maybe for ever.

        Otherwise as ``Acquirer.acquire``. Raises ``LockUnavailable``.
        """
        if len(request.names) > 1:
            request = request._replace(names=tuple(sorted(request.names)))
        if request.wait_seconds <= 0:
            return await self._manager.acquirer.acquire(asking, request)
        names, stop = request.names, request.stop or WaitCancellation()
        wait_until = self._clock() + request.wait_seconds
        caller = _Caller(asking.bell())
        try:
            if await self._wait_for_turn(names, caller, wait_until, stop):
                if len(names) > 1:
                    return await self._contend_for_all(asking, request, wait_until, stop)
                seconds_left = max(0.0, wait_until - self._clock())
                return await self._manager.acquirer.acquire(asking, request._replace(wait_seconds=seconds_left))
        finally:
            self._leave(names, caller)
        return Conflict(names[0], await asking.call(self._manager.claims.look, names[0]))

    async def _contend_for_all(
        self, asking: StoreAccess, request: AcquireRequest, wait_until: float, stop: WaitCancellation
    ) -> list[Lock] | Conflict:
        while True:
            outcome = await self._manager.acquirer.acquire(asking, request._replace(wait_seconds=0.0))
            seconds_left = wait_until - self._clock()
            if not isinstance(outcome, Conflict) or seconds_left <= 0 or stop.stopped:
                return outcome
            if outcome.keys:
                # Of those that own, any may leave; of a long queue the last owner's is the one that counts least.
                in_the_way = outcome.keys[0]
                change = AwaitChange(outcome.name, in_the_way.mod_revision, in_the_way.token, stop)
                await asking.perform(change, min(seconds_left, LONGEST_WATCH_SECONDS))
            else:
                await asking.pause(min(seconds_left, RETRY_SECONDS))

    def queued(self, names: Sequence[str]) -> int:
        """How many of this process wait for these locks, whoever is first included."""
        return len(self._queues.get(tuple(sorted(names)), ()))

    async def _wait_for_turn(
        self, key: tuple[str, ...], caller: _Caller, wait_until: float, stop: WaitCancellation
    ) -> bool:
        """False when the time was over before, or it was stopped."""
        with stop.waking(caller.bell.ring):
            while True:
                if stop.stopped:
                    return False
                if self._is_first(key, caller):
                    return True
                seconds_left = wait_until - self._clock()
                if seconds_left <= 0:
                    return False
                await caller.bell.wait(min(seconds_left, LOOK_SECONDS))

    def _is_first(self, key: tuple[str, ...], caller: _Caller) -> bool:
        """Whether it is the caller's turn. Queues it, if it isn't yet."""
        with self._mutex:
            queue = self._queues.setdefault(key, OrderedDict())
            queue.setdefault(id(caller), weakref.ref(caller))
            while queue:
                first = next(iter(queue.values()))()
                if first is not None:
                    return first is caller
                queue.popitem(last=False)
            return False

    def _leave(self, key: tuple[str, ...], caller: _Caller) -> None:
        """Not queued any more; who comes next is woken. Harmless for one that never was."""
        following: _Caller | None = None
        with self._mutex:
            queue = self._queues.get(key)
            if queue is None or queue.pop(id(caller), None) is None:
                return
            if not queue:
                del self._queues[key]
            else:
                following = next(iter(queue.values()))()
        if following is not None:
            following.bell.ring()
