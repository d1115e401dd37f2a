"""The group commit is struck: whoever shares a call with the one that is struck gets his answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from celery_etcdlock.core.operations import PlaceOperation, Release, StoreOperation
from celery_etcdlock.core.replies import Released, StoreReply
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.group_commit import GroupCommit
from tests.strikes.striker import Strike, Striker
from tests.waiting import wait_for

#: Of each caller. One that waits for a leader that is no more waits for so long.
DEADLINE_SECONDS = 120.0
#: After which it counts as forgotten.
FORGOTTEN_SECONDS = 30.0


class Store:
    """``during_first`` is called in the first call, while others come."""

    most_together = 64

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.during_first: Callable[[], object] = lambda: None
        self.error: LockUnavailable | None = None

    def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        assert isinstance(operation, Release)
        self._call((operation.name,))
        return Released()

    def perform_together(self, operations: Sequence[PlaceOperation], timeout_seconds: float) -> list[StoreReply]:
        self._call(tuple(operation.name for operation in operations))
        if self.error is not None:
            raise self.error
        return [Released() for _ in operations]

    def _call(self, names: tuple[str, ...]) -> None:
        self.calls.append(names)
        if len(self.calls) == 1:
            self.during_first()

    def close(self) -> None:
        pass


class Callers:
    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.store = Store()
        self.shared = GroupCommit(self.store)
        self.others: list[Future[StoreReply]] = []
        self.over = threading.Event()
        self._pool = pool

    def perform(self, name: str) -> StoreReply:
        return self.shared.perform(Release(name, "token", 1), DEADLINE_SECONDS)

    def queue(self, *names: str) -> None:
        for name in names:
            self.others.append(self._pool.submit(self.perform, name))
            wait_for(lambda name=name: name in self.shared._queue or self.over.is_set(), f"{name} is queued")  # type: ignore[misc]

    def lead(self) -> Callable[[], object]:
        """The one that is struck calls first; two others come meanwhile."""
        self.store.during_first = lambda: self.queue("a", "b")
        return lambda: self.perform("struck")

    def take_along(self) -> Callable[[], object]:
        """The one that is struck waits for another's call, then calls for two more."""
        self.store.during_first = self._while_another_calls
        self.others.append(self._pool.submit(self.perform, "first"))
        wait_for(lambda: self.store.calls, "the first call is under way")
        return lambda: self.perform("struck")

    def take_along_and_be_refused(self) -> Callable[[], object]:
        self.store.error = LockUnavailable("no permission for one of them", permanent=True)
        return self.take_along()

    def be_taken_along(self) -> Callable[[], object]:
        """The one that is struck goes along with another, that waited before him."""
        self.store.during_first = self._after_another
        self.others.append(self._pool.submit(self.perform, "first"))
        wait_for(lambda: "before" in self.shared._queue, "one waits")
        return lambda: self.perform("struck")

    def _while_another_calls(self) -> None:
        self._await_struck()
        self.queue("a", "b")

    def _after_another(self) -> None:
        self.queue("before")
        self._await_struck()

    def _await_struck(self) -> None:
        wait_for(lambda: "struck" in self.shared._queue or self.over.is_set(), "the one to be struck waits")


WAYS = ("lead", "take_along", "take_along_and_be_refused", "be_taken_along")


def strike(way: str, striker: Striker) -> None:
    """Once, and look at what became of the others."""
    with ThreadPoolExecutor(4) as pool:
        callers = Callers(pool)
        struck = getattr(callers, way)()
        outcome: object = None
        try:
            outcome = striker.run(struck)
        except Strike as error:
            outcome = error
        callers.over.set()
        assert isinstance(outcome, Released if striker.where is None else Strike), "swallowed"
        for other in callers.others:
            assert wait([other], FORGOTTEN_SECONDS).done
            error = other.exception()
            assert error is None or isinstance(error, LockUnavailable)
        assert callers.shared._leader is None
        assert not callers.shared._queue
        assert pool.submit(callers.perform, "next").result(FORGOTTEN_SECONDS) == Released()
