"""What ``EtcdScheduler`` puts around a scheduler for the time of one term: claims, and what the store knows of runs.

It is a base class in front of the scheduler's own (``guarded``), so that every tick of the scheduler passes here:
``is_due`` claims a tick before anything is changed for it, ``apply_async`` sends only what is claimed (``TickSender``).

The *last run* of an entry is the store's, where the store has a later one (``_align``). The scheduler's own file or
database may be older (another host worked yesterday, or it died before it wrote) or newer (a beat worked without us).
"""

from __future__ import annotations

import heapq
import logging
import time
import uuid
from functools import cache, cached_property
from typing import Any, cast

from celery.beat import ScheduleEntry, Scheduler, SchedulingError, event_t
from celery.utils.functional import is_numeric_value

from celery_etcdlock.beat.entry_times import aware, described, due_at, is_too_old, own_last_run, set_run
from celery_etcdlock.beat.leader_term import Tick, segment_of
from celery_etcdlock.beat.tick_sender import TickSender
from celery_etcdlock.core.beat_state import EntryState, Phase, later_run
from celery_etcdlock.errors import LockUnavailable

logger = logging.getLogger("celery_etcdlock")

#: Seconds between two looks for entries that were added, changed or removed at run time.
COMPARE_SECONDS = 0.5


@cache
def guarded(inner: Any) -> type[Guard]:
    """The scheduler's class with the guard in front of it."""
    return cast("type[Guard]", type(f"Guarded{inner.__name__}", (Guard, inner), {}))


class Guard(TickSender):
    """See the module."""

    _compare_at = 0.0
    #: What the last tick found not to be due now, and for how many seconds.
    _put_off: tuple[ScheduleEntry, float] | None = None
    # Celery's, and django-celery-beat's: celery-types doesn't know them.
    _when: Any
    _dirty: Any

    # --- what Celery's tick goes through ---------------------------------------------------------------------

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """As Celery's; raises ``LockLost`` once this process isn't the beat any more."""
        self.term.check()
        if self.term.broker_away and not self._broker_is_there():
            return self._retry_seconds
        self._send_unsent()
        if self.term.broker_away:
            return self._retry_seconds
        self._put_off = None
        seconds = super().tick(*args, **kwargs)
        self.term.check()
        if self._put_off is not None and self._heap:
            seconds = self._pass_over(*self._put_off, seconds)
        if self._heap is None:
            return 0.0
        if seconds and seconds > 0:
            try:
                self.term.confirm()
            except LockUnavailable as error:
                self.term.etcd_is_away(error)
                return min(seconds, self._retry_seconds)
        waits = [tick.not_before - time.monotonic() for tick in self.term.unsent.values()]
        return max(0.0, min([seconds, *waits])) if seconds else 0.0

    def _pass_over(self, entry: ScheduleEntry, put_off_seconds: float, seconds: float) -> float:
        """Celery before 5.7 leaves an entry that is put off on top of its heap: those behind it never get a turn."""
        event = self._heap[0]
        if event[2] is not entry or event[0] > self._when(entry, 0):
            return seconds
        heapq.heapreplace(self._heap, event_t(self._when(entry, put_off_seconds), event[1], entry))
        return 0.0 if self._heap[0][2] is not entry else min(put_off_seconds, seconds)

    def populate_heap(self, *args: Any, **kwargs: Any) -> None:
        entries = list(self.schedule.values())
        for entry in entries:
            self._align(entry)
        self._introduce(entries)
        super().populate_heap(*args, **kwargs)

    def schedules_equal(self, old_schedules: Any, new_schedules: Any) -> bool:
        """As Celery's, which compares all entries in each tick: with thousands of them that is most of a tick's time.

        So only every ``COMPARE_SECONDS``, and a due entry by itself (``is_due``). A scheduler with a comparison of its
        own is asked each time.
        """
        now = time.monotonic()
        if self._compares_seldom and now < self._compare_at and old_schedules is not None:
            return True
        self._compare_at = now + COMPARE_SECONDS
        return super().schedules_equal(old_schedules, new_schedules)

    @cached_property
    def _compares_seldom(self) -> bool:
        return getattr(super().schedules_equal, "__func__", None) is Scheduler.schedules_equal

    def is_due(self, entry: ScheduleEntry) -> tuple[bool, float]:
        """Whether it is due and claimed. What can't be claimed now is tried again soon."""
        due, next_seconds = self._is_due(entry)
        if not due:
            self._put_off = entry, next_seconds if is_numeric_value(next_seconds) else float(self.max_interval or 0)
        return due, next_seconds

    def _is_due(self, entry: ScheduleEntry) -> tuple[bool, float]:
        segment = segment_of(entry.name)
        claimed = self.term.claimed.get(segment)
        if claimed is not None:  # somebody asked twice
            return True, max(0.0, (claimed.state.next_at or 0.0) - claimed.state.last_run_at)
        if self._compares_seldom and self.schedule.get(cast("str", entry.name)) is not entry:
            # Removed or replaced at run time, since it was put on the heap.
            self._heap = None
            self._compare_at = 0.0
            return False, 0.0
        if self._align(entry):
            self._heap = None  # its place in it was for another last run
        due, next_seconds = super().is_due(entry)
        if not due:
            return due, next_seconds
        if segment in self.term.unsent:
            return False, self._retry_seconds  # one at a time: what falls due meanwhile is one with it
        with self.term.troubles_noted():
            tick = self._tick(entry, next_seconds)
            if tick.state.phase is Phase.SKIPPED:
                self.term.skip(tick)
                self._align(entry)
                return False, next_seconds
            if self._broker_is_there():
                self.term.claim(tick)
                return due, next_seconds
        return False, self._retry_seconds

    def reserve(self, entry: ScheduleEntry) -> Any:
        """The entry after its run: as the claim says, to the microsecond."""
        following = super().reserve(entry)
        tick = self.term.claimed.get(segment_of(entry.name))
        if tick is not None:
            set_run(following, tick.state.last_run_at, tick.state.count)
        return following

    def apply_async(self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send the entry's claimed tick. One that a scheduler sends in a way of its own is claimed here."""
        segment = segment_of(entry.name)
        if segment not in self.term.claimed:
            tick = self._tick(entry, 0.0)
            try:
                self.term.claim(tick)
            except LockUnavailable as error:
                raise SchedulingError(f"the tick of {entry.name} couldn't be claimed in etcd: {error}") from error
        return self._send(entry, self.term.claimed[segment], producer, advance)

    # --- claims ----------------------------------------------------------------------------------------------

    def _tick(self, entry: ScheduleEntry, next_seconds: float) -> Tick:
        segment = segment_of(entry.name)
        doubtful = self.term.doubtful.get(segment)
        if doubtful is not None:
            return doubtful  # maybe claimed already: as it was, or not at all
        now = entry.default_now()
        wall = aware(now).timestamp()
        due = due_at(entry.schedule, entry.last_run_at or now, now)
        too_old = is_too_old(entry.schedule, due, now, self.term.catch_up_seconds)
        phase = Phase.CLAIMED if self.term.at_least_once else Phase.PUBLISHED
        state = self._state_of(
            entry,
            last_run_at=wall,
            count=(entry.total_run_count or 0) + (0 if too_old else 1),
            phase=Phase.SKIPPED if too_old else phase,
            due_at=wall if due is None else min(due, wall),
            next_at=wall + next_seconds if is_numeric_value(next_seconds) else None,
            task_id=str((entry.options or {}).get("task_id") or uuid.uuid4()),
        )
        return Tick(segment, entry, state)

    def _state_of(self, entry: ScheduleEntry, **facts: Any) -> EntryState:
        schedule = described(entry.schedule)
        return EntryState(str(entry.name), str(entry.task), schedule, fence=self.term.lock.fencing_token, **facts)

    def _introduce(self, entries: list[ScheduleEntry]) -> None:
        """Write down when an entry was first seen, so that its first run doesn't start anew with each beat."""
        states = {}
        for entry in entries:
            segment = segment_of(entry.name)
            if segment not in self.term.states:
                now = entry.default_now()
                last_run = entry.last_run_at or now
                states[segment] = self._state_of(
                    entry,
                    last_run_at=aware(last_run).timestamp(),
                    count=entry.total_run_count or 0,
                    next_at=due_at(entry.schedule, last_run, now),
                )
        with self.term.troubles_noted():
            self.term.save(states)

    def _align(self, entry: ScheduleEntry) -> bool:
        """Give the entry the last run that the store knows, if that is later. Returns whether it was."""
        state = self.term.states.get(segment_of(entry.name))
        if state is None:
            return False
        found = later_run(state, own_last_run(entry), aware(entry.default_now()).timestamp())
        current = entry.last_run_at
        if found is None or (current is not None and abs(found - aware(current).timestamp()) < 1e-6):
            return False
        set_run(entry, found, max(state.count, 1 if state.phase is Phase.PUBLISHED else 0))
        if isinstance(getattr(self, "_dirty", None), set):
            self._dirty.add(entry.name)  # django-celery-beat: its database learns of it, too
        return True

    # --- the end ---------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Only during the term: afterwards the next beat may have written."""
        if not self.term.over:
            super().sync()

    def abandon(self) -> None:
        """The term was ended from outside: close what is open, and write nothing."""
        self.term.over = True
        if isinstance(getattr(self, "_dirty", None), set):
            self._dirty.clear()
        try:
            super().close()
        except Exception:
            logger.exception("celery-etcdlock: closing the scheduler failed")
