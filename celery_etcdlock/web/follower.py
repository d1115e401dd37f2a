"""What the page shows, kept up to date by two threads: one follows etcd, one asks the workers for their figures.

Conflicts leave no trace in etcd, so only workers know how many there were; where none answers, the page says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from celery_etcdlock.core.beat_view import beat_as_json, beats_of
from celery_etcdlock.core.lock_table import KeyEntry, LockEntry, LockTable, SnapshotOutdated, described
from celery_etcdlock.core.printable import printable
from celery_etcdlock.core.timeline import Timeline
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.inspector import Inspector

__all__ = ["Follower"]

logger = logging.getLogger("celery_etcdlock")

#: Locks and bars in one state: more than that nobody reads, and a browser would choke on.
MOST_LOCKS = 500
MOST_BARS = 1000
#: Entries of one beat.
MOST_ENTRIES = 200
RETRY_SECONDS = 2.0
TTL_SECONDS = 5.0
FIGURES_SECONDS = 10.0
#: Conflicts per minute are counted over so many seconds.
WINDOW_SECONDS = 60.0

Figures = dict[str, dict[str, int]]


class Follower:
    """``figures`` returns each answering worker's lock figures (``inspect stats``); it may take a second.

    ``of`` says what is looked at, for the page: app, prefix, endpoints.
    """

    def __init__(
        self, inspector: Inspector, figures: Callable[[], Figures], of: Mapping[str, Any] | None = None
    ) -> None:
        self._inspector = inspector
        self._of = dict(of or {})
        #: Whether the store has ever answered: until then nobody knows what is held.
        self._seen = False
        self._used: bool | None = None
        self._figures = figures
        self._changed = threading.Condition()
        self._version = 0
        self._board = LockTable()
        self._timeline = Timeline()
        self._ttls: dict[int, float] = {}
        self._beats: list[dict[str, Any]] = []
        self._error: str | None = "not connected yet"
        self._workers: int | None = None
        self._conflicts: deque[tuple[float, Figures]] = deque()
        self._stopped = False

    def start(self) -> None:
        for target in (self._follow, self._ask_workers):
            threading.Thread(target=target, daemon=True).start()

    def stop(self) -> None:
        self._stopped = True

    def wait(self, version: int, seconds: float) -> int:
        """The number of the latest state, once it isn't ``version`` any more or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, seconds)
            return self._version

    def state(self) -> dict[str, Any]:
        """All that the page shows. ``held`` and ``waiting`` are ``None`` until the store was seen once.

        ``used``: whether the prefix was ever used, ``None`` where that isn't known. Texts are harmless to show.
        """
        now = time.time()
        with self._changed:
            self._board.forget_those_over(now)
            locks = self._board.locks()
            shown = locks[:MOST_LOCKS]
            state = {
                "now": round(now, 3),
                "of": self._of,
                "error": self._error,
                "held": len(locks) if self._seen else None,
                "waiting": sum(len(lock.waiters) for lock in locks) if self._seen else None,
                "used": True if locks else self._used,
                "workers": self._workers,
                "conflicts_per_minute": self._conflicts_per_minute(),
                "locks": [self._lock_as_json(lock) for lock in shown],
                "beats": self._beats,
                "timeline_seconds": self._timeline.seconds,
                "timeline": self._timeline.bars(now)[-MOST_BARS:],
            }
        return {key: _harmless(value) for key, value in state.items()}

    def entry(self, name: str, token: str, fencing_token: object) -> KeyEntry | None:
        """The owner's place that the page named: that holding, not a later one."""
        with self._changed:
            owners = [owner for lock in self._board.named(name) for owner in lock.owners]
        wanted = (token, fencing_token)
        return next((owner for owner in owners if (owner.key.token, owner.key.mod_revision) == wanted), None)

    def _lock_as_json(self, lock: LockEntry) -> dict[str, Any]:
        return {
            "lock": lock.name,
            "owners": [described(entry, self._ttls.get(entry.lease)) for entry in lock.owners],
            "waiters": [described(entry) for entry in lock.waiters[:50]],
            "waiting": len(lock.waiters),
        }

    # --- etcd -----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        while not self._stopped:
            try:
                self._follow_from_now()
            except SnapshotOutdated:
                continue
            except LockUnavailable as error:
                self._say(str(error))
                time.sleep(RETRY_SECONDS)
            except Exception:
                logger.exception("celery-etcdlock: the page lost sight of the locks and looks again")
                self._say("an unexpected error, see the log")
                time.sleep(RETRY_SECONDS)

    def _follow_from_now(self) -> None:
        entries, revision = self._inspector.snapshot()
        with self._changed:
            self._board = LockTable(entries)
            self._seen = True
            owners = [owner for lock in self._board.locks() for owner in lock.owners]
            self._timeline.restart(owners, time.time())
        self._say(None)
        ttls_at = 0.0
        for changes in self._inspector.changes(revision):
            if self._stopped:
                return
            if changes:
                with self._changed:
                    for change in changes:
                        for happening in self._board.apply(change):
                            self._timeline.apply(happening, time.time())
                self._say(None)
            if time.monotonic() - ttls_at > TTL_SECONDS:
                owners = [owner for lock in self._board.locks()[:MOST_LOCKS] for owner in lock.owners]
                self._ttls = self._inspector.ttls(owner.lease for owner in owners)
                self._used = bool(owners) or self._inspector.traces().used
                beats = beats_of(self._inspector.books(), self._board.locks())
                self._beats = [{"name": beat.name} | beat_as_json(beat, MOST_ENTRIES) for beat in beats]
                ttls_at = time.monotonic()
                self._say(None)

    def _say(self, error: str | None) -> None:
        with self._changed:
            self._error = error
            self._version += 1
            self._changed.notify_all()

    # --- workers --------------------------------------------------------------------------------------------

    def _ask_workers(self) -> None:
        while not self._stopped:
            try:
                figures = self._figures()
            except Exception as error:
                logger.debug("celery-etcdlock: the workers can't be asked for their figures: %s", error)
                figures = {}
            with self._changed:
                self._workers = len(figures)
                now = time.monotonic()
                self._conflicts.append((now, figures))
                # One sample older than the window is kept, to count from.
                while len(self._conflicts) > 2 and now - self._conflicts[1][0] >= WINDOW_SECONDS:
                    self._conflicts.popleft()
            time.sleep(FIGURES_SECONDS)

    def _conflicts_per_minute(self) -> float | None:
        """``None`` while it can't be known: no worker answers, or none has answered twice."""
        if len(self._conflicts) < 2:
            return None
        (began, first), (ended, last) = self._conflicts[0], self._conflicts[-1]
        known = [worker for worker in last if worker in first]
        if not known or ended <= began:
            return None
        # A worker that was restarted counts from nothing.
        counts = [last[worker]["conflicts"] - first[worker]["conflicts"] for worker in known]
        return round(sum(max(0, count) for count in counts) * 60 / (ended - began), 1)


def _harmless(value: Any) -> Any:
    """The same, with no control character or the like in any text."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _harmless(each) for key, each in value.items()}
    return [_harmless(each) for each in value] if isinstance(value, list | tuple) else value
