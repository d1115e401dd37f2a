"""Sends the ticks that are claimed: through the scheduler's own connection, for as long as its lock can be trusted.

A tick that can't be sent now is kept (``at_least_once``). While the broker is unreachable nothing is claimed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, cast

from celery.beat import ScheduleEntry, Scheduler, SchedulingError
from kombu.exceptions import OperationalError

from celery_etcdlock.beat.entry_times import set_run
from celery_etcdlock.beat.leader_term import Term, Tick, segment_of
from celery_etcdlock.errors import LockLost, LockUnavailable

logger = logging.getLogger("celery_etcdlock")

HEADER_ENTRY = "etcdlock_beat_entry"
HEADER_DUE = "etcdlock_beat_due"


class TickSender(Scheduler):
    """What ``Guard`` sends with. ``term`` is set before ``__init__``, in which a scheduler sets up its schedule."""

    term: Term
    #: Seconds until an unreachable broker or etcd is asked again.
    _retry_seconds = 1.0
    #: The same for one entry that the broker refuses, while others are sent.
    _refused_seconds = 5.0
    # Celery's: celery-types doesn't know it.
    _heap: Any

    def _send_unsent(self) -> None:
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
                text = "celery-etcdlock: a tick of %r was claimed and maybe not sent; its entry was removed since"
                logger.warning(text, tick.state.name)
                self.term.drop(tick)
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
            # It replaces all ticks that fell due meanwhile: the next one is counted from now.
            set_run(current, tick.state.last_run_at, tick.state.count)
            self._heap = None
        return result

    def _could_not_send(self, tick: Tick, error: Exception) -> None:
        cause = error.__cause__ or error.__context__ or error
        connection: Any = self.connection
        is_away = isinstance(cause, (OperationalError, OSError, *connection.connection_errors))
        # The broker refused it, or the task's own lock couldn't be taken by the call.
        is_refused = isinstance(cause, (LockUnavailable, *connection.channel_errors))
        if self.term.at_least_once and (is_away or is_refused):
            self.term.keep(tick, self._retry_seconds if is_away else self._refused_seconds)
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


def _stamped(entry: Any, tick: Tick) -> Any:
    """The entry as it is sent this time: which tick it is, and under which id."""
    stamped = object.__new__(type(entry))
    stamped.__dict__.update(entry.__dict__)
    options: Mapping[str, Any] = entry.options or {}
    headers = {**(options.get("headers") or {}), HEADER_ENTRY: tick.state.name, HEADER_DUE: tick.due_text}
    # Not kombu's own retries: between two tries the lock must be asked.
    stamped.options = {**options, "headers": headers, "task_id": tick.state.task_id, "retry": False}
    return stamped
