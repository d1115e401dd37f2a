"""One watch for all who wait in event loops: tells each that a key under its lock's name was deleted.

The watch sees every deletion under the app's prefix, so its cost is the app's releases, not the number of those who
wait. It runs in a thread, begins with the first who waits, and ends a while after the last. Nobody relies on it:
whoever waits looks again now and then, and whenever something may have been missed.

*What may have been missed.* Each waits for what comes after a revision that it has seen. The watch began after some
revision, too, and remembers the latest deletions; who comes with an older revision than it can speak for is woken at
once, and looks. When the watch breaks, all are woken, and it begins anew.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.native import Alarm, allocate_mutex, start_thread

logger = logging.getLogger("celery_etcdlock")

#: Seconds for which the watch goes on when nobody waits, so that the next finds it open.
IDLE_SECONDS = 3.0

#: Seconds before a watch that broke is opened again.
RETRY_SECONDS = 1.0

#: Of so many names the latest deletion is remembered.
MOST_REMEMBERED = 4096

Ring = Callable[[], None]


class Deletions(Protocol):
    """Deletions of keys, as they come: ``open`` yields the revision that they begin after, then the rest."""

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
        """Have ``ring`` called when a key under ``name`` is deleted after the revision, until it is removed."""
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
        """End the watch within a second; all who wait are woken."""
        self._closed = True
        self._wake()

    # --- the watch's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while os.getpid() == self._pid:
            try:
                with self._deletions.open() as (revision, deletions):
                    with self._mutex:
                        self._latest.clear()
                        self._since = revision
                    self._wake(before=revision)
                    for revision, names in deletions:
                        self._note(revision, names)
                        self._wake(names, before=revision)
                        if self._is_over():
                            return
            except LockUnavailable as error:
                logger.debug("the watch for waiting locks broke and begins anew: %s", error)
            except Exception:
                logger.exception("celery-etcdlock: the watch for waiting locks failed unexpectedly and begins anew")
            self._since = None
            self._wake()
            if self._is_over():
                return
            Alarm().wait(RETRY_SECONDS)  # as a real thread sleeps, also under gevent

    def _note(self, revision: int, names: set[str]) -> None:
        with self._mutex:
            for name in names:
                self._latest[name] = revision
                self._latest.move_to_end(name)
            while len(self._latest) > MOST_REMEMBERED:
                _, self._since = self._latest.popitem(last=False)

    def _wake(self, names: Collection[str] | None = None, before: float = float("inf")) -> None:
        """Those who wait for one of ``names`` (``None``: for any), if they have seen less than ``before``."""
        with self._mutex:
            waiting = self._waiting.values() if names is None else [self._waiting.get(name, {}) for name in names]
            rings = [ring for each in waiting for ring, after in each.items() if after < before]
        for ring in rings:
            ring()

    def _is_over(self) -> bool:
        with self._mutex:
            idle = not self._waiting and self._monotonic() - self._idle_since > IDLE_SECONDS
            if idle or self._closed:
                self._since = None
                self._runs = False
            return not self._runs
