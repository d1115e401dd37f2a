"""``celery beat -S celery_etcdlock.beat:EtcdScheduler``: what Celery sees of a beat that can die. See the package."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from celery import Celery
from celery.beat import Scheduler
from celery.exceptions import ImproperlyConfigured
from celery.utils.imports import qualname

from celery_etcdlock.app.celery_settings import host_name, imported
from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.beat.leader_term import StateTooNew, Term, mark_of, segment_of
from celery_etcdlock.beat.safe_points import SafePoints
from celery_etcdlock.beat.scheduler_guard import Guard, guarded
from celery_etcdlock.core.beat_state import EntryState, WorkState
from celery_etcdlock.core.beat_view import BEAT_PREFIX
from celery_etcdlock.core.events import BeatTookOver, LockEvent, LockWaiting, TickSent
from celery_etcdlock.core.record import STANDALONE_PREFIX, Delivery, Record
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.errors import InvalidSetting, LockLost, LockUnavailable
from celery_etcdlock.listeners import Listeners, find_listener
from celery_etcdlock.locking.leader_election import LeaderElection
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.native import Alarm
from celery_etcdlock.signals import send_signal
from celery_etcdlock.wiring import open_stores

logger = logging.getLogger("celery_etcdlock")

#: The task's name in the record of a beat's lock.
TASK = "celery beat"

#: Seconds that an idle tick lasts at most, so that Celery sees soon that it should stop.
LONGEST_WAIT_SECONDS = 1.0

AWAY = "standing by: etcd is unreachable, nothing is scheduled"

#: Seconds that a beat that couldn't take over leaves the lock to others.
PAUSE_SECONDS = 15.0


def lock_name_of(settings: Settings, app: Celery) -> str:
    """The name of the lock that these beats share, and of what they save for one another."""
    return f"{BEAT_PREFIX}{settings.beat_name or app.main or 'default'}"


class EtcdScheduler(Scheduler):
    """One of several beats; see the package. It runs another scheduler while it is at work."""

    def __init__(self, app: Celery, **kwargs: Any) -> None:
        kwargs.pop("lazy", None)
        self._locks = EtcdLocks.from_app(app)
        self._settings = self._locks.settings
        try:
            self._inner_class = _scheduler_class(self._settings.beat_scheduler)
            self._listeners = [find_listener(entry) for entry in self._settings.listeners or ()]
            open_stores(self._settings)  # parses the endpoints, and connects to nothing
        except InvalidSetting as error:
            raise ImproperlyConfigured(str(error)) from None
        self._arguments = kwargs
        self._name = lock_name_of(self._settings, app)
        self._alarm = Alarm()
        self._safe_points = SafePoints()
        self._election: LeaderElection | None = None
        self._inner: Guard | None = None
        self._next_at = 0.0
        #: Ids of ticks that were sent, and couldn't be confirmed while this was the beat.
        self._to_mark: list[str] = []
        #: What was logged last of standing by.
        self._said = ""
        # Lazily: the schedule is the inner scheduler's.
        super().__init__(app, max_interval=kwargs.get("max_interval"), lazy=True)

    def setup_schedule(self) -> None:
        """Nothing: it is the inner scheduler's, for as long as there is one."""

    @property
    def info(self) -> str:
        where = ", ".join(self._settings.endpoints)
        return f"    . puts to work -> {qualname(self._inner_class)}\n    . lock -> {self._name} at {where}"

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Stand by, take over or work; returns within a second or a tick, and sleeps by itself."""
        election = self._election or self._stand()
        lock = election.lock
        if lock is None:
            self._mark_what_was_sent()
            self._alarm.wait(LONGEST_WAIT_SECONDS)
            return 0.0
        try:
            with self._safe_points.held():
                inner = self._take_over(election, lock) if self._inner is None else self._inner
                if inner is None:
                    return 0.0
                now = time.monotonic()
                if now >= self._next_at or inner.term.lock.lost:
                    seconds = inner.tick() or 0.0
                    self._next_at = time.monotonic() + max(0.0, seconds)
        except LockLost as error:
            self._lose(error)
            return 0.0
        wait = min(self._next_at - time.monotonic(), LONGEST_WAIT_SECONDS)
        if wait > 0:
            self._alarm.wait(wait)
            if self._inner is not None and self._inner.should_sync() and not self._inner.term.over:
                self._inner._do_sync()  # type: ignore[attr-defined]
        return 0.0

    def should_sync(self) -> bool:
        return False

    def sync(self) -> None:
        """Have the scheduler at work write what it has to write."""
        if self._inner is not None:
            self._inner.sync()

    def close(self) -> None:
        """End: confirm what was sent, close the scheduler, and have another beat take over at once."""
        if self._safe_points.is_held:
            return  # in a signal's handler, amid a tick: Celery closes again when that is over
        inner, self._inner = self._inner, None
        election, self._election = self._election, None
        try:
            if inner is not None:
                self._close_inner(inner)
        finally:
            if election is not None:
                election.stop()
                if election.manager.pid == os.getpid():
                    logger.info("celery-etcdlock: this beat has ended")

    def _close_inner(self, inner: Guard) -> None:
        try:
            inner.term.check()
            inner.term.confirm()
        except (LockLost, LockUnavailable) as error:
            logger.warning("celery-etcdlock: this beat ends without a last confirmation: %s", error)
            inner.abandon()
            return
        inner.close()
        inner.term.over = True

    def _stand(self) -> LeaderElection:
        self._safe_points.install()
        store, renewal_store = open_stores(self._settings)
        timeout = self._settings.timeout
        listener = Listeners([send_signal, *self._listeners, self._hear])
        self._election = LeaderElection(
            LockManager(store, renewal_store, timeout_seconds=timeout, listener=listener),
            self._name,
            self._record,
            self._settings.beat_ttl or self._settings.ttl,
            alarm=self._alarm,
            on_lost=self._on_lost,
            on_away=self._on_away,
        )
        self._election.start()
        return self._election

    def _record(self) -> Record:
        return self._locks.record(Delivery(f"{STANDALONE_PREFIX}beat of {self.app.main or 'an app'}"), TASK)

    def _hear(self, event: LockEvent) -> None:
        if not isinstance(event, LockWaiting):
            return
        holder = event.holder
        who = "somebody" if holder is None else f"{holder.host}, pid {holder.pid}"
        said = f"standing by: beat is held by {who}"
        if said != self._said:
            self._said = said
            logger.info("celery-etcdlock: %s", said)
        if holder is not None and holder.broker is not None and holder.broker != event.record.broker:
            logger.error(
                "celery-etcdlock: the beat at work (%s) sends to another broker than this one would: if these are two "
                "deployments, one of them schedules nothing. Give each its own etcdlock_prefix or etcdlock_beat_name",
                who,
            )

    def _on_away(self, error: LockUnavailable) -> None:
        if self._said != AWAY:
            self._said = AWAY
            logger.warning("celery-etcdlock: %s: %s", AWAY, error)

    def _take_over(self, election: LeaderElection, lock: Lock) -> Guard | None:
        settings, manager = self._settings, election.manager
        term = Term(
            lock,
            manager.saved_states(self._name, lock),
            manager.done,
            at_least_once=settings.beat_delivery == "at_least_once",
            catch_up_seconds=settings.beat_catch_up,
            on_sent=self._on_sent,
        )
        self._next_at = 0.0
        try:
            lock.check()
            work = WorkState(host_name(), os.getpid(), time.time(), lock.fencing_token, app=self.app.main or "")
            work = term.begin(work)
            manager.tell(BeatTookOver(self._name, lock.record, lock.fencing_token, work.takeovers))
            inner = self._make_inner(term)
            term.note_absent(segment_of(name) for name in inner.schedule)
            self._inner = inner
            self._said = ""
        except StateTooNew as error:
            logger.error("celery-etcdlock: standing by: %s", error)
            election.leave(PAUSE_SECONDS)
        except LockUnavailable as error:
            logger.warning("celery-etcdlock: standing by: can't read the last beat's state: %s", error)
            election.leave(LONGEST_WAIT_SECONDS)
        return self._inner

    def _make_inner(self, term: Term) -> Guard:
        scheduler_class = guarded(cast("Any", self._inner_class))
        inner = scheduler_class.__new__(scheduler_class)
        inner.term = term
        arguments = {"schedule_filename": self.app.conf.beat_schedule_filename, "max_interval": None, **self._arguments}
        inner.__init__(app=self.app, **arguments)  # type: ignore[misc]
        return inner

    def _lose(self, error: LockLost) -> None:
        inner, self._inner = self._inner, None
        logger.error("celery-etcdlock: this beat has stopped scheduling: %s", error)
        if inner is not None:
            if inner.term.lock.session.lost_reason() is None:
                # Asked to release: until then the lock is ours in etcd, and what was sent can be confirmed.
                with suppress(LockLost, LockUnavailable):
                    inner.term.confirm()
            self._to_mark += inner.term.sent_and_not_confirmed()
            inner.abandon()
            # Before the lock goes to the next one, if that can be.
            self._mark_what_was_sent()
        self._said = ""
        if self._election is not None:
            self._election.leave()

    def _mark_what_was_sent(self) -> None:
        """Mark what the next beat would send again, because etcd was unreachable when it was to be confirmed."""
        while self._to_mark and self._election is not None:
            try:
                self._election.manager.done.put(mark_of(self._to_mark[0]))
            except LockUnavailable as error:
                logger.debug("celery-etcdlock: what was sent can't be marked for the next beat yet: %s", error)
                return
            self._to_mark.pop(0)

    def _on_lost(self, lock: Lock) -> None:
        inner = self._inner
        if inner is not None and inner.term.lock is lock:
            inner.term.interrupt(lock.lost_reason or "lost")

    def _on_sent(self, state: EntryState, late_seconds: float) -> None:
        if self._election is not None:
            record = replace(self._record(), task=state.task, delivery=Delivery(state.task_id or ""))
            self._election.manager.tell(TickSent(self._name, record, state.name, late_seconds))


def _scheduler_class(named: str | type) -> type[Scheduler]:
    """The scheduler that the setting names. Raises ``InvalidSetting``."""
    remedy = "name a subclass of celery.beat.Scheduler, such as 'celery.beat:PersistentScheduler'"
    found = imported("etcdlock_beat_scheduler", named, remedy)
    if not (isinstance(found, type) and issubclass(found, Scheduler)):
        raise InvalidSetting(f"etcdlock_beat_scheduler: {named!r} is not a scheduler: {remedy}")
    if issubclass(found, EtcdScheduler):
        raise InvalidSetting(f"etcdlock_beat_scheduler: {named!r} runs a scheduler and isn't one itself: {remedy}")
    return found
