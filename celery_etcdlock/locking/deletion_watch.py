"""One watch for all who wait in event loops: tells each that a place under its lock's name was deleted.

The watch sees every deletion under the app's prefix, so its cost is the app's releases, not the number of those who
wait. It runs in a thread, begins with the first who waits, and ends a while after the last. Nobody has to be told for
sure: whoever waits looks again now and then, and whenever something may have been missed.

*What may have been missed.* Each waits for what comes after a revision that it has seen. The watch began after some
revision, too, and remembers the latest deletions; who comes with an older revision than it can speak for is told at
once, and looks. When the watch breaks, all are told, and it begins anew.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Protocol

from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.native import allocate_mutex, start_thread

logger = logging.getLogger("celery_etcdlock")

#: Seconds for which the watch goes on when nobody waits, so that the next finds it open.
IDLE_SECONDS = 3.0

#: Seconds before a watch that broke is opened again.
RETRY_SECONDS = 1.0

#: Of so many names the latest deletion is remembered.
MOST_REMEMBERED = 4096

Ring = Callable[[], None]


class Deletions(Protocol):
    """Deletions of places, as they come: ``open`` yields the revision that they begin after, then the rest."""

    def open(self) -> AbstractContextManager[tuple[int, Iterator[tuple[int, set[str]]]]]:
        """The revision after which the deletions begin, and them: a revision and escaped names, at least every second.

        Raises ``LockUnavailable`` when the store can't be asked, then or in the midst of it.
        """


class DeletionWatch:
    """See the module. One for each process and store."""

    def __init__(self, deletions: Deletions, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._deletions = deletions
        self._monotonic = monotonic
        self._mutex = allocate_mutex()  # held for moments only
        self._waiting: dict[str, dict[Ring, int]] = {}
        #: The latest deletion of each name, those longest ago first.
        self._latest: OrderedDict[str, int] = OrderedDict()
        #: What came after this revision would be known; ``None`` while nothing is watched.
        self._since: int | None = None
        self._runs = False
        self._idle_since = monotonic()
        self._closed = False
        self._pid = os.getpid()

    def add(self, ring: Ring, name: str, after_revision: int) -> None:
        """Have ``ring`` called when a place under ``name`` is deleted after the revision, until it is removed."""
        segment = escape_name(name)
        with self._mutex:
            self._waiting.setdefault(segment, {})[ring] = after_revision
            missed = self._since is not None and (
                after_revision < self._since or self._latest.get(segment, 0) > after_revision
            )
            start = not self._runs and not self._closed
            self._runs = self._runs or start
        if start:
            start_thread(self._run, "celery-etcdlock-changes")
        if missed:
            ring()

    def remove(self, ring: Ring, name: str) -> None:
        segment = escape_name(name)
        with self._mutex:
            rings = self._waiting.get(segment, {})
            rings.pop(ring, None)
            if not rings:
                self._waiting.pop(segment, None)
            if not self._waiting:
                self._idle_since = self._monotonic()

    def close(self) -> None:
        """End the watch within a second; all who wait are told."""
        self._closed = True
        self._tell_all()

    # --- the watch's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while os.getpid() == self._pid:
            try:
                with self._deletions.open() as (revision, deletions):
                    self._begin(revision)
                    for revision, names in deletions:
                        self._tell(revision, names)
                        if self._is_over():
                            return
            except LockUnavailable as error:
                logger.debug("the watch for waiting locks broke and begins anew: %s", error)
            except Exception:
                logger.exception("celery-etcdlock: the watch for waiting locks failed unexpectedly and begins anew")
            self._since = None
            self._tell_all()
            if self._is_over():
                return
            _sleep(RETRY_SECONDS)

    def _begin(self, revision: int) -> None:
        with self._mutex:
            self._latest.clear()
            self._since = revision
            missed = [ring for rings in self._waiting.values() for ring, after in rings.items() if after < revision]
        for ring in missed:
            ring()

    def _tell(self, revision: int, names: set[str]) -> None:
        with self._mutex:
            told = [ring for name in names for ring, after in self._waiting.get(name, {}).items() if after < revision]
            for name in names:
                self._latest[name] = revision
                self._latest.move_to_end(name)
            while len(self._latest) > MOST_REMEMBERED:
                _, self._since = self._latest.popitem(last=False)
        for ring in told:
            ring()

    def _tell_all(self) -> None:
        with self._mutex:
            told = [ring for rings in self._waiting.values() for ring in rings]
        for ring in told:
            ring()

    def _is_over(self) -> bool:
        with self._mutex:
            idle = not self._waiting and self._monotonic() - self._idle_since > IDLE_SECONDS
            if idle or self._closed:
                self._since = None
                self._runs = False
            return not self._runs


def _sleep(seconds: float) -> None:
    # A real thread's, also under gevent.
    pause = allocate_mutex()
    pause.acquire()
    with suppress(OverflowError):
        pause.acquire(timeout=seconds)
