"""What the page shows, kept up to date by two threads: one follows etcd, one asks the workers for their figures.

Conflicts leave no trace in etcd, so only workers know how many there were. Where none answers, the page says so.

*Trust.* When etcd is unreachable the page keeps what was seen last, with the time when it was true (``seen_at``).
Until etcd has answered once the figures are ``None``: "no lock seen" isn't "no lock held".

*Cost.* The list of locks is made once per change, not per browser. TTLs are asked only for locks on somebody's page.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from celery_etcdlock.core.beat_view import beat_as_json, beats_of
from celery_etcdlock.core.lock_table import KeyEntry, LockEntry, LockTable, SnapshotOutdated, number_held
from celery_etcdlock.core.timeline import Timeline
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.inspector import Inspector, waiting_counts
from celery_etcdlock.web.view import View, bounded_json, page_of, timeline_of

logger = logging.getLogger("celery_etcdlock")

#: Entries of one beat.
MOST_ENTRIES = 200
RETRY_SECONDS = 2.0
TTL_SECONDS = 5.0
#: Messages that wait without a queue position are counted by their workers about as often.
COUNTS_SECONDS = 3.0
#: Seconds between two looks for expired keys.
FORGET_SECONDS = 1.0
#: Leases whose TTL is asked for at once: those of the pages that somebody looked at lately.
MOST_LEASES = 500
FIGURES_SECONDS = 10.0
#: Conflicts per minute are counted over so many of them: a minute.
SAMPLES = 7

Figures = dict[str, dict[str, int]]


class Follower:
    """``figures`` returns each answering worker's lock figures (``inspect stats``); it may take a second.

    ``about`` says whose locks the page shows: app, prefix, endpoints, and the store.
    """

    def __init__(self, inspector: Inspector, figures: Callable[[], Figures], about: Mapping[str, Any]) -> None:
        self._inspector = inspector
        self._figures = figures
        self._about = about
        self._changed = threading.Condition()
        self._version = 0
        self._board = LockTable()
        self._locks: list[LockEntry] | None = None
        self._forgot_at = 0.0
        self._timeline = Timeline()
        self._ttls: dict[int, float] = {}
        self._looked_at: set[int] = set()
        self._ttls_asked: set[int] = set()
        self._beats: list[dict[str, Any]] = []
        self._error: str | None = None
        self._seen_at: float | None = None
        self._used: bool | None = None
        self._workers: int | None = None
        self._conflicts: deque[tuple[float, Figures]] = deque(maxlen=SAMPLES)
        self._stopped = False

    def start(self) -> None:
        for target in (self._follow, self._ask_workers):
            threading.Thread(target=target, daemon=True).start()

    def stop(self) -> None:
        self._stopped = True

    def wait(self, version: int, seconds: float) -> int:
        """Wait until the state is newer than ``version``, or for so many seconds. Returns its number."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, seconds)
            return self._version

    def state(self, view: View | None = None) -> dict[str, Any]:
        """All that the page shows of what ``view`` looks at."""
        view = view or View()
        now = time.time()
        with self._changed:
            locks, others = self._all_locks(now), self._board.counts.others
            bars = self._timeline.bars(now)
            ttls, seen_at, error = self._ttls, self._seen_at, self._error
            conflicts = self._conflicts_per_minute()
        shown, matching, page = page_of(locks, view)
        leases = {owner.key.lease for lock in shown for owner in lock.owners if owner.key.lease}
        with self._changed:
            if len(self._looked_at) < MOST_LEASES:
                self._looked_at |= leases
        timeline, timeline_locks = timeline_of(bars, locks, view)
        known = seen_at is not None
        waiting = sum((lock.others for lock in locks), others)
        return {
            "now": round(now, 3),
            "about": self._about,
            "error": error,
            "seen_at": seen_at,
            "listed": len(locks) if known else None,
            "held": number_held(locks) if known else None,
            "waiting": sum(len(lock.waiters) for lock in locks) if known else None,
            "retrying": waiting.retrying if known else None,
            "joining": waiting.joining if known else None,
            "workers": self._workers,
            "conflicts_per_minute": conflicts,
            "used": True if locks else self._used,
            "matching": matching if known else None,
            "page": page,
            "size": view.size,
            "locks": [bounded_json(lock, ttls) for lock in shown],
            "beats": self._beats,
            "timeline_seconds": self._timeline.seconds,
            "timeline": timeline,
            "timeline_locks": timeline_locks,
        }

    def _all_locks(self, now: float) -> list[LockEntry]:
        """Call it with the mutex held. The list is never changed afterwards."""
        if now - self._forgot_at > FORGET_SECONDS:
            self._forgot_at = now
            if self._board.forget_those_over(now):
                self._locks = None
        if self._locks is None:
            self._locks = self._board.locks()
        return self._locks

    def entry(self, name: str, token: str, fencing_token: object) -> KeyEntry | None:
        """The owner's key that the page named: that holding, not a later one."""
        with self._changed:
            owners = [owner for lock in self._all_locks(time.time()) if lock.name == name for owner in lock.owners]
        wanted = (token, fencing_token)
        return next((owner for owner in owners if (owner.key.token, owner.key.mod_revision) == wanted), None)

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
                logger.exception("celery-etcdlock: the page can't follow the locks and starts again")
                self._say("an unexpected error, see the log")
                time.sleep(RETRY_SECONDS)

    def _follow_from_now(self) -> None:
        entries, revision = self._inspector.snapshot()
        counts = waiting_counts(self._inspector)
        with self._changed:
            self._board, self._locks = LockTable(entries, counts), None
            owners = [owner for lock in self._all_locks(time.time()) for owner in lock.owners]
            self._timeline.restart(owners, time.time())
        self._say(None)
        beats_at = ttls_at = 0.0
        counts_at = time.monotonic()
        for changes in self._inspector.changes(revision):
            if self._stopped:
                return
            if changes:
                with self._changed:
                    self._locks = None
                    for change in changes:
                        self._timeline.apply(self._board.apply(change), time.time())
            now = time.monotonic()
            wanted = self._ttls_wanted(now - ttls_at > TTL_SECONDS)
            if wanted:
                self._ttls, self._ttls_asked = self._inspector.ttls(wanted), wanted
                ttls_at = time.monotonic()
            if now - counts_at > COUNTS_SECONDS:
                counts, counts_at = waiting_counts(self._inspector), time.monotonic()
                with self._changed:
                    self._board.counts, self._locks = counts, None
            if now - beats_at > TTL_SECONDS:
                saved_states = self._inspector.saved_states()
                with self._changed:
                    beats = beats_of(saved_states, self._all_locks(time.time()))
                self._used = bool(self._locks) or self._inspector.traces().used
                self._beats = [{"name": beat.name} | beat_as_json(beat, MOST_ENTRIES) for beat in beats]
                beats_at = time.monotonic()
            self._say(None)

    def _ttls_wanted(self, due: bool) -> set[int]:
        """Leases to ask for: when ``due`` those looked at since the last time, else only if there are new ones."""
        with self._changed:
            looked_at = self._looked_at
            if due:
                self._looked_at = set()
                return looked_at
            return set() if looked_at <= self._ttls_asked else looked_at | self._ttls_asked

    def _say(self, error: str | None) -> None:
        with self._changed:
            self._error = error
            if error is None:
                self._seen_at = round(time.time(), 3)
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
                self._conflicts.append((time.monotonic(), figures))
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
        return sum(max(0, count) for count in counts) * 60 / (ended - began)
