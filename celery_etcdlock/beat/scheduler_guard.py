"""What ``EtcdScheduler`` puts around a scheduler for the time of one term: claims, sending, confirmation.

It is a base class in front of the scheduler's own (``guarded``), so that every tick of the scheduler passes here:
``is_due`` claims a tick before anything is changed for it, ``apply_async`` sends only what is claimed.

The *last run* of an entry is the store's, where the store has a later one (``_align``). The scheduler's own file or
database may be older (another host worked yesterday, or it died before it wrote) or newer (a beat worked without us).
"""

from __future__ import annotations

import heapq
import logging
import time
import uuid
from collections.abc import Mapping
from datetime import datetime
from functools import cache, cached_property
from typing import Any, cast

from celery.beat import ScheduleEntry, Scheduler, SchedulingError, event_t
from celery.utils.functional import is_numeric_value
from kombu.exceptions import OperationalError

from celery_etcdlock.beat.due_times import aware, described, due_at, is_too_old, like
from celery_etcdlock.beat.leader_term import Term, Tick, segment_of
from celery_etcdlock.core.beat_state import EntryState, Phase, later_run
from celery_etcdlock.errors import LockLost, LockUnavailable

logger = logging.getLogger("celery_etcdlock")

#: Seconds until an unreachable broker or etcd is asked again.
RETRY_SECONDS = 1.0
#: The same for one entry that the broker refuses, while others are sent.
REFUSED_SECONDS = 5.0
#: Seconds between two looks for entries that were added, changed or removed at run time.
COMPARE_SECONDS = 0.5

HEADER_ENTRY = "etcdlock_beat_entry"
HEADER_DUE = "etcdlock_beat_due"


@cache
def guarded(inner: Any) -> type[Guard]:
    """The scheduler's class with the guard in front of it."""
    return cast("type[Guard]", type(f"Guarded{inner.__name__}", (Guard, inner), {}))


class Guard(Scheduler):
    """See the module. ``term`` is set before ``__init__``, in which a scheduler sets up its schedule."""

    term: Term
    _compare_at = 0.0
    #: What the last tick found not to be due now, and for how many seconds.
    _put_off: tuple[ScheduleEntry, float] | None = None
    # Celery's, and django-celery-beat's: celery-types doesn't know them.
    _heap: Any
    _when: Any
    _dirty: Any

    # --- what Celery's tick goes through ---------------------------------------------------------------------

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """As Celery's; raises ``LockLost`` once this process isn't the beat any more."""
        self.term.check()
        if self.term.broker_away and not self._broker_is_there():
            return RETRY_SECONDS
        self._send_what_waits()
        if self.term.broker_away:
            return RETRY_SECONDS
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
                return min(seconds, RETRY_SECONDS)
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
            return False, RETRY_SECONDS  # one at a time: what falls due meanwhile is one with it
        try:
            tick = self._tick(entry, next_seconds)
            if tick.state.phase is Phase.SKIPPED:
                self.term.skip(tick)
                self._align(entry)
                return False, next_seconds
            if not self._broker_is_there():
                return False, RETRY_SECONDS
            self.term.claim(tick)
        except LockUnavailable as error:
            self.term.etcd_is_away(error)
            return False, RETRY_SECONDS
        except LockLost as error:
            # Celery would take it for a fault of the entry's schedule. ``tick`` raises it.
            self.term.lost = error
            return False, RETRY_SECONDS
        return due, next_seconds

    def reserve(self, entry: ScheduleEntry) -> Any:
        """The entry after its run: as the claim says, to the microsecond."""
        following = super().reserve(entry)
        tick = self.term.claimed.get(segment_of(entry.name))
        if tick is not None:
            _set_run(following, tick.state.last_run_at, tick.state.count)
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
        now = _now(entry)
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
        return EntryState(str(entry.name), str(entry.task), schedule, fence=self.term.fence, **facts)

    def _introduce(self, entries: list[ScheduleEntry]) -> None:
        """Write down when an entry was first seen, so that its first run doesn't start anew with each beat."""
        states = {}
        for entry in entries:
            segment = segment_of(entry.name)
            if segment not in self.term.states:
                now = _now(entry)
                last_run = entry.last_run_at or now
                states[segment] = self._state_of(
                    entry,
                    last_run_at=aware(last_run).timestamp(),
                    count=entry.total_run_count or 0,
                    next_at=due_at(entry.schedule, last_run, now),
                )
        try:
            self.term.write(states)
        except LockUnavailable as error:
            self.term.etcd_is_away(error)
        except LockLost as error:
            self.term.lost = error

    def _align(self, entry: ScheduleEntry) -> bool:
        """Give the entry the last run that the store knows, if that is later. Returns whether it was."""
        state = self.term.states.get(segment_of(entry.name))
        if state is None:
            return False
        found = later_run(state, _own_last_run(entry), aware(_now(entry)).timestamp())
        current = entry.last_run_at
        if found is None or (current is not None and abs(found - aware(current).timestamp()) < 1e-6):
            return False
        _set_run(entry, found, max(state.count, 1 if state.phase is Phase.PUBLISHED else 0))
        if isinstance(getattr(self, "_dirty", None), set):
            self._dirty.add(entry.name)  # django-celery-beat: its database learns of it, too
        return True

    # --- sending ---------------------------------------------------------------------------------------------

    def _send_what_waits(self) -> None:
        """Send ticks that are claimed and not sent: left by the last beat, or while the broker was unreachable."""
        for segment, tick in list(self.term.unsent.items()):
            if time.monotonic() < tick.not_before:
                continue
            try:
                if self.term.was_sent(tick):
                    continue
            except LockUnavailable as error:
                self.term.etcd_is_away(error)
                return
            if not self._broker_is_there():
                return
            entry = next((each for each in self.schedule.values() if segment_of(each.name) == segment), tick.entry)
            if entry is None:
                logger.warning(
                    "celery-etcdlock: a tick of %r was claimed and maybe not sent; its entry was removed since",
                    tick.state.name,
                )
                self.term.drop(segment)
                continue
            self.term.unsent.pop(segment, None)
            try:
                self._send(entry, tick, self.producer, advance=False)
            except SchedulingError as error:
                logger.error("celery-etcdlock: %s", error)
            if self.term.broker_away:
                return

    def _send(self, entry: ScheduleEntry, tick: Tick, producer: Any, advance: bool) -> Any:
        """Send it once, if this process still holds the lock. What the broker couldn't take is kept and sent later.

        A lost lock isn't raised here, where Celery would log it as the entry's failure: the next ``tick`` raises it.
        """
        send = super().apply_async
        stamped = _stamped(entry, tick)
        try:
            self.term.check()
            result = self.term.interruptible(lambda: send(stamped, producer=producer, advance=advance))
        except LockLost:
            self.term.claimed.pop(tick.segment, None)
            return None
        except Exception as error:
            if isinstance(error.__cause__ or error.__context__, LockLost):
                return None
            self._could_not_send(tick, error)
            if tick.segment in self.term.unsent:
                return None
            raise
        self.term.broker_away = False
        self.term.sent(tick)
        current = self.schedule.get(cast("str", entry.name))
        if tick.late_in_sending and current is not None:
            # It stands for all ticks that fell due meanwhile: the next one is counted from now.
            _set_run(current, tick.state.last_run_at, tick.state.count)
            self._heap = None
        return result

    def _could_not_send(self, tick: Tick, error: Exception) -> None:
        cause = error.__cause__ or error.__context__ or error
        connection: Any = self.connection
        is_away = isinstance(cause, (OperationalError, OSError, *connection.connection_errors))
        # The broker refused it, or the task's own lock couldn't be taken by the call.
        is_refused = isinstance(cause, (LockUnavailable, *connection.channel_errors))
        if self.term.at_least_once and (is_away or is_refused):
            self.term.keep(tick, RETRY_SECONDS if is_away else REFUSED_SECONDS)
            logger.error(
                "celery-etcdlock: the tick of %r can't be sent yet, and will be retried: %r", tick.state.name, cause
            )
            self._forget_broker()
            self.term.broker_away = is_away
            return
        if not self.term.at_least_once:
            logger.error(
                "celery-etcdlock: the tick of %r that was due at %s may not have been sent, and isn't sent again "
                "(etcdlock_beat_delivery is at_most_once): %r",
                tick.state.name,
                tick.due_text,
                cause,
            )
        self.term.sent(tick, failed=True)
        if is_away:
            self._forget_broker()

    def _broker_is_there(self) -> bool:
        """Connect to the broker, once. Celery's own beat tries a hundred times and then dies."""
        try:
            self.producer  # noqa: B018 (made at first use)
        except Exception as error:
            self._forget_broker()
            if not self.term.broker_away:
                logger.error("celery-etcdlock: the broker is unreachable, ticks wait for it: %r", error)
            self.term.broker_away = True
            return False
        self.term.broker_away = False
        return True

    def _forget_broker(self) -> None:
        connection = self.__dict__.pop("connection", None)
        self.__dict__.pop("producer", None)
        try:
            if connection is not None:
                connection.release()
        except Exception as error:
            logger.debug("celery-etcdlock: a broken connection to the broker didn't close: %r", error)

    def _ensure_connected(self) -> Any:
        return self.connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)

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


def _now(entry: ScheduleEntry) -> datetime:
    now: datetime = entry.default_now()
    return now


def _own_last_run(entry: Any) -> float | None:
    """When the entry ran last as its scheduler knows; ``None`` where it has never run there."""
    model = getattr(entry, "model", None)
    moment = entry.last_run_at if model is None else getattr(model, "last_run_at", None)
    if moment is None or (model is None and not entry.total_run_count):
        return None
    return aware(moment).timestamp()


def _set_run(entry: Any, last_run_at: float, count: int) -> None:
    """On the entry, and on the database row behind it (django-celery-beat), from which the next one is made."""
    entry.last_run_at = like(entry.last_run_at, last_run_at)
    entry.total_run_count = count
    model = getattr(entry, "model", None)
    if model is not None and hasattr(model, "total_run_count"):
        model.last_run_at = entry.last_run_at
        model.total_run_count = count


def _stamped(entry: Any, tick: Tick) -> Any:
    """The entry as it is sent this time: which tick it is, and under which id."""
    stamped = object.__new__(type(entry))
    stamped.__dict__.update(entry.__dict__)
    options: Mapping[str, Any] = entry.options or {}
    headers = {**(options.get("headers") or {}), HEADER_ENTRY: tick.state.name, HEADER_DUE: tick.due_text}
    # Not kombu's own retries: between two tries the lock must be asked.
    stamped.options = {**options, "headers": headers, "task_id": tick.state.task_id, "retry": False}
    return stamped
