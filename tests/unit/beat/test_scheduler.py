"""Schedulers of one process on one store in memory: who works, what is claimed, sent, confirmed, and taken over.

A scheduler "dies" when its candidacy's lease is revoked under it and nobody ticks it any more.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.beat import Scheduler
from celery.exceptions import ImproperlyConfigured
from celery.schedules import crontab, schedule, solar
from kombu.exceptions import EncodeError, OperationalError

from celery_etcdlock import EtcdLocks
from celery_etcdlock.beat import EtcdScheduler
from celery_etcdlock.beat import leader_term as term_module
from celery_etcdlock.beat import scheduler as scheduler_module
from celery_etcdlock.beat.leader_term import WORK, segment_of
from celery_etcdlock.beat.tick_sender import TickSender
from celery_etcdlock.core.beat_state import ABSENT_SECONDS, EntryState, Phase, decode_state, encode_state
from celery_etcdlock.core.operations import (
    FenceSession,
    GrantLease,
    HeldKey,
    LoadStates,
    Look,
    Release,
    RevokeLease,
    SaveStates,
    StateWrite,
    StoreOperation,
    TryAcquire,
)
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import (
    Owned,
    Present,
    SessionFenced,
    StatesRefused,
    StatesSaved,
    StatesSeen,
    StoreReply,
)
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.memory_store import MemoryStore
from tests.waiting import wait_for

_numbers = itertools.count()
SECONDS = 5.0


class Dies(BaseException):
    """What SIGKILL is to a thread."""


class Store:
    """A store in memory; ``trouble`` may raise before an operation, or after it."""

    def __init__(self) -> None:
        self.memory = MemoryStore()
        self.before: Callable[[StoreOperation], None] = lambda operation: None
        self.after: Callable[[StoreOperation], None] = lambda operation: None

    def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        self.before(operation)
        reply = self.memory.perform(operation, timeout_seconds)
        self.after(operation)
        return reply

    def close(self) -> None: ...


class Sends(Scheduler):
    """A plain scheduler that sends to a list. ``trouble`` is called with the entry's task before each sending."""

    sent: list[tuple[str, dict[str, Any]]]
    trouble: Callable[[str], None]
    afterwards: Callable[[str], None]

    def send_task(self, name: str, *args: Any, **options: Any) -> None:
        type(self).trouble(name)
        type(self).sent.append((name, {**options, "at": time.time()}))
        type(self).afterwards(name)

    @property
    def connection(self) -> Any:
        return Connection()

    @property
    def producer(self) -> Any:
        return object()

    def should_sync(self) -> bool:
        return False


class Connection:
    connection_errors = (ConnectionError,)
    channel_errors = (LookupError,)

    def release(self) -> None: ...


class World:
    """Schedulers of one name, and what they sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = Store()
        monkeypatch.setattr(scheduler_module, "open_stores", lambda settings: (self.store, self.store))
        monkeypatch.setattr(scheduler_module, "LONGEST_WAIT_SECONDS", 0.1)
        monkeypatch.setattr(TickSender, "_retry_seconds", 0.2)
        monkeypatch.setattr(term_module, "GRACE_SECONDS", 0.5)
        monkeypatch.setattr(TickSender, "_refused_seconds", 0.3)
        self.inner = type(
            "Sends", (Sends,), {"sent": [], "trouble": lambda name: None, "afterwards": lambda name: None}
        )
        self.name = f"beats{next(_numbers)}"
        self.opened: list[EtcdScheduler] = []

    def app(self, entries: dict[str, Any], **settings: Any) -> Celery:
        app = Celery(self.name, broker="memory://", set_as_current=False)
        beat_schedule = {
            name: entry if isinstance(entry, dict) else {"task": f"t.{name}", "schedule": entry}
            for name, entry in entries.items()
        }
        app.conf.update(
            etcdlock_endpoints="memory://",
            etcdlock_ttl=20,
            etcdlock_timeout=0.5,
            etcdlock_beat_scheduler=self.inner,
            beat_schedule=beat_schedule,
        )
        app.conf.update(settings)
        return app

    def new(self, entries: dict[str, Any], **settings: Any) -> EtcdScheduler:
        scheduler = EtcdScheduler(self.app(entries, **settings))
        self.opened.append(scheduler)
        return scheduler

    @property
    def sent(self) -> list[tuple[str, dict[str, Any]]]:
        return self.inner.sent

    def sent_of(self, entry: str) -> list[dict[str, Any]]:
        return [options for name, options in self.sent if name == f"t.{entry}"]

    def ids(self, entry: str) -> list[str]:
        return [options["task_id"] for options in self.sent_of(entry)]

    def states(self) -> dict[str, EntryState]:
        reply = self.store.memory.perform(LoadStates(f"beat:{self.name}"), SECONDS)
        assert isinstance(reply, StatesSeen)
        found = {state.key: decode_state(state.value) for state in reply.states}
        return {key: state for key, state in found.items() if isinstance(state, EntryState)}

    def holder(self) -> tuple[Any, ...]:
        reply = self.store.memory.perform(Look(f"beat:{self.name}"), SECONDS)
        assert isinstance(reply, Present)
        return reply.keys

    def leave_behind(self, *states: EntryState | bytes, key: str = "") -> None:
        """As an earlier beat would have."""
        name = f"beat:{self.name}"
        self.store.memory.perform(GrantLease(99, 60), SECONDS)
        fenced = self.store.memory.perform(FenceSession(99), SECONDS)
        assert isinstance(fenced, SessionFenced)
        record = Record(Delivery("earlier"), "beat", "host", 1, 0.0)
        owned = self.store.memory.perform(TryAcquire(99, fenced.epoch, name, "earlier", record), SECONDS)
        assert isinstance(owned, Owned)
        guard = HeldKey(name, "earlier", owned.revision)
        for state in states:
            segment, value = (key, state) if isinstance(state, bytes) else (segment_of(state.name), encode_state(state))
            write = StateWrite(segment, value, 0)
            reply = self.store.memory.perform(SaveStates(guard, name, (write,)), SECONDS)
            if isinstance(reply, StatesRefused):
                again = replace(write, seen_revision=reply.states[0].revision)
                reply = self.store.memory.perform(SaveStates(guard, name, (again,)), SECONDS)
            assert isinstance(reply, StatesSaved)
        self.store.memory.perform(Release(name, "earlier", owned.revision), SECONDS)

    def die(self, scheduler: EtcdScheduler) -> None:
        """No last word: only its lease ends."""
        assert scheduler._election is not None
        scheduler._election.manager.give_up()
        self.opened.remove(scheduler)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(monkeypatch)
    yield world
    world.store.before = world.store.after = lambda operation: None
    for scheduler in world.opened:
        scheduler.close()


def work(until: Callable[[], object], *schedulers: EtcdScheduler, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it didn't come to it"
        for scheduler in schedulers:
            scheduler.tick()


def state(name: str, ago: float, **more: Any) -> EntryState:
    """Of an entry that ran so many seconds ago."""
    fields = {"count": 1, "phase": Phase.PUBLISHED, "fence": 1} | more
    return EntryState(name, f"t.{name}", "?", time.time() - ago, **fields)


class TestWork:
    def test_one_works_the_other_stands_by_and_takes_over_at_once(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "celery_etcdlock")
        first, second = world.new({"a": 0.05}), world.new({"a": 0.05})
        work(lambda: len(world.sent) >= 3, first)
        work(lambda: "standing by" in caplog.text, second)
        assert second._inner is None
        work(lambda: len(world.sent) >= 6, first)
        for _ in range(2):
            second.tick()
        assert caplog.text.count("standing by: beat is held by") == 1
        sent_before = len(world.sent)
        first.close()
        work(lambda: len(world.sent) >= sent_before + 3, second)
        assert len(set(world.ids("a"))) == len(world.sent)
        dues = [options["headers"]["etcdlock_beat_due"] for options in world.sent_of("a")]
        assert dues == sorted(set(dues))
        work(lambda: world.states()["a"].phase is Phase.PUBLISHED, second)
        assert world.states()["a"].count == len(world.sent)

    def test_a_tick_says_what_it_is(self, world: World) -> None:
        before = time.time()
        scheduler = world.new({"a": {"task": "t.a", "schedule": 0.05, "options": {"headers": {"x": 1}, "queue": "q"}}})
        work(lambda: world.sent, scheduler)
        [options, *_] = world.sent_of("a")
        assert (options["headers"]["x"], options["queue"], options["retry"]) == (1, "q", False)
        assert options["headers"]["etcdlock_beat_entry"] == "a"
        due = datetime.fromisoformat(options["headers"]["etcdlock_beat_due"])
        assert before + 0.04 <= due.timestamp() <= time.time()
        # The entry itself is as it was: the next tick has an id of its own.
        work(lambda: len(world.sent) >= 2, scheduler)
        assert len(set(world.ids("a"))) == len(world.sent)

    def test_entries_that_come_and_go_at_run_time(self, world: World) -> None:
        scheduler = world.new({"a": 0.05})
        work(lambda: world.sent, scheduler)
        inner = scheduler._inner
        assert inner is not None
        inner.add(name="b", task="t.b", schedule=schedule(0.05, app=scheduler.app))
        work(lambda: len(world.sent_of("b")) >= 2, scheduler)
        assert world.states()["b"].count >= 1
        del inner.schedule["a"]
        later = time.monotonic() + 1
        work(lambda: time.monotonic() > later, scheduler)
        before = len(world.sent_of("a"))
        work(lambda: time.monotonic() > later + 0.5, scheduler)
        assert len(world.sent_of("a")) == before

    def test_the_last_run_goes_on_with_the_next_one(self, world: World) -> None:
        """celery/single-beat: a job every 15 minutes waited for up to 29 after a failover."""
        world.leave_behind(state("daily", ago=80000.0, count=7), state("due", ago=90000.0, count=3))
        scheduler = world.new({"daily": timedelta(days=1), "due": timedelta(days=1)})
        work(lambda: world.sent, scheduler)
        assert [name for name, _ in world.sent] == ["t.due"]
        inner = scheduler._inner
        assert inner is not None
        assert inner.schedule["daily"].total_run_count == 7
        assert abs(inner.schedule["daily"].last_run_at.timestamp() - (time.time() - 80000)) < 60
        assert inner.schedule["due"].total_run_count == 4

    def test_an_entry_that_never_ran_does_not_start_its_first_period_anew(self, world: World) -> None:
        first = world.new({"a": 3600.0})
        work(lambda: "a" in world.states(), first)
        seen = world.states()["a"]
        assert (seen.count, seen.phase) == (0, Phase.WAITING)
        first.close()
        world.leave_behind(replace(seen, last_run_at=seen.last_run_at - 4000))
        second = world.new({"a": 3600.0})
        work(lambda: world.sent, second)

    def test_a_last_run_of_the_schedulers_own_counts_if_it_is_later(self, world: World) -> None:
        world.leave_behind(state("a", ago=5000.0, count=2))
        recent = datetime.now(timezone.utc) - timedelta(seconds=10)
        entry = {"task": "t.a", "schedule": 3600.0, "last_run_at": recent, "total_run_count": 9}
        scheduler = world.new({"a": entry, "b": 0.05})
        work(lambda: len(world.sent_of("b")) >= 3, scheduler)
        assert world.sent_of("a") == []

    def test_every_kind_of_schedule_is_fired_once_for_its_gap(self, world: World) -> None:
        zone = crontab(minute="*")
        kinds: dict[str, Any] = {
            "interval": 60.0,
            "relative": {"task": "t.relative", "schedule": 60.0, "relative": True},
            "cron": crontab(),
            "zoned": zone,
            "subclass": type("Mine", (schedule,), {})(60.0),
        }
        with suppress(ImproperlyConfigured, ModuleNotFoundError):  # without ephem
            kinds["solar"] = solar("sunrise", 0.0, 0.0)
        world.leave_behind(*(state(name, ago=200000.0) for name in kinds))
        scheduler = world.new({**kinds, "clock": 0.05}, timezone="Europe/Berlin")
        work(lambda: len(world.sent_of("clock")) >= 3 and len(world.sent) >= len(kinds) + 3, scheduler)
        for name in kinds:
            [options] = world.sent_of(name)[:1]
            due = datetime.fromisoformat(options["headers"]["etcdlock_beat_due"]).timestamp()
            assert due < time.time() - 60, name
            if name != "cron" and name != "zoned":
                assert len(world.sent_of(name)) == 1, name

    def test_a_tick_that_is_too_old_is_skipped(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        day = timedelta(days=1)
        world.leave_behind(
            state("old", ago=86400.0 + 700), state("young", ago=86400.0 + 100), state("often", ago=86400.0)
        )
        scheduler = world.new({"old": day, "young": day, "often": 7.0, "clock": 0.05}, etcdlock_beat_catch_up=600)
        work(lambda: len(world.sent_of("clock")) >= 3 and world.sent_of("often"), scheduler)
        assert [len(world.sent_of(name)) for name in ("old", "young", "often")] == [0, 1, 1]
        assert "the tick of 'old'" in caplog.text
        assert world.states()["old"].phase is Phase.SKIPPED
        assert time.time() - world.states()["old"].last_run_at < 60

    def test_a_last_run_far_in_the_future_does_not_stop_an_entry(self, world: World) -> None:
        world.leave_behind(state("a", ago=-1e8), state("b", ago=-2.0))
        scheduler = world.new({"a": 0.2, "b": 0.2})
        work(lambda: world.sent_of("a") and world.sent_of("b"), scheduler)


class TestDeaths:
    def test_between_claim_and_sending(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        first = world.new({"a": 0.2})

        def die(name: str) -> None:
            raise Dies

        world.inner.trouble = die
        with pytest.raises(Dies):
            work(lambda: False, first)
        world.die(first)
        claimed = world.states()["a"]
        assert claimed.phase is Phase.CLAIMED
        assert world.sent == []
        world.inner.trouble = lambda name: None
        second = world.new({"a": 3600.0})
        work(lambda: world.sent, second)
        assert world.ids("a") == [claimed.task_id]
        work(lambda: world.states()["a"].phase is Phase.PUBLISHED, second)
        assert world.states()["a"].fence > claimed.fence
        for _ in range(3):
            second.tick()
        assert len(world.sent) == 1, "what fell due meanwhile is one with it"

    def test_between_sending_and_confirmation(self, world: World) -> None:
        first = world.new({"a": 0.2})

        def die(name: str) -> None:
            raise Dies

        world.inner.afterwards = die
        with pytest.raises(Dies):
            work(lambda: False, first)
        world.die(first)
        world.inner.afterwards = lambda name: None
        second = world.new({"a": 3600.0})
        work(lambda: len(world.sent) >= 2, second)
        assert len(set(world.ids("a"))) == 1, "twice, under one id: whoever runs tasks can tell"

    def test_one_that_lives_tells_the_next_what_it_sent_and_could_not_confirm(self, world: World) -> None:
        """A leader of etcd dies just then, and its election takes longer than the TTL."""
        first = world.new({"a": 0.2}, etcdlock_ttl=2)

        def etcd_is_away(operation: StoreOperation) -> None:
            if not isinstance(operation, RevokeLease):
                raise LockUnavailable("away")

        def cut_off(name: str) -> None:
            world.store.before = etcd_is_away

        world.inner.afterwards = cut_off
        work(lambda: world.sent, first)
        world.inner.afterwards = lambda name: None
        work(lambda: first._inner is None and first._to_mark, first)
        assert world.states()["a"].phase is Phase.CLAIMED
        world.store.before = lambda operation: None
        work(lambda: not first._to_mark, first)
        second = world.new({"a": 3600.0})
        work(lambda: second._inner or first._inner, first, second)
        at_work = first if first._inner is not None else second
        work(lambda: world.states()["a"].phase is Phase.PUBLISHED, at_work)
        assert len(set(world.ids("a"))) == len(world.sent), "not twice"

    @pytest.mark.parametrize("when", ["trouble", "afterwards"])
    def test_at_most_once_lets_it_go(self, world: World, when: str) -> None:
        first = world.new({"a": 0.2}, etcdlock_beat_delivery="at_most_once")

        def die(name: str) -> None:
            raise Dies

        setattr(world.inner, when, die)
        with pytest.raises(Dies):
            work(lambda: False, first)
        world.die(first)
        assert world.states()["a"].phase is Phase.PUBLISHED
        setattr(world.inner, when, lambda name: None)
        before = len(world.sent)
        second = world.new({"a": 3600.0, "b": 0.05}, etcdlock_beat_delivery="at_most_once")
        work(lambda: len(world.sent_of("b")) >= 3, second)
        assert len(world.sent_of("a")) == before

    def test_one_whose_lock_is_gone_sends_nothing_any_more(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        first, second = world.new({"a": 0.05}), world.new({"a": 0.05})
        work(lambda: len(world.sent) >= 2, first)
        work(lambda: len(world.holder()) == 2, second)
        work(lambda: world.states()["a"].phase is Phase.PUBLISHED, first)
        # Deleted behind its back, so that it can't know: the claim finds out.
        owner = world.holder()[0]
        world.store.memory.perform(Release(f"beat:{world.name}", owner.token, owner.mod_revision), SECONDS)
        before = len(world.sent)
        work(lambda: first._inner is None, first)
        assert len(world.sent) == before
        assert "Cannot calculate" not in caplog.text
        work(lambda: len(world.sent) >= before + 2, second)
        assert len(set(world.ids("a"))) == len(world.sent)

    def test_a_late_claim_of_one_that_was_overtaken_has_no_effect(self, world: World) -> None:
        first, second = world.new({"a": 0.3}), world.new({"a": 0.3})
        work(lambda: world.sent, first)
        work(lambda: len(world.holder()) == 2, second)
        held_back: list[SaveStates] = []

        def hold(operation: StoreOperation) -> None:
            if isinstance(operation, SaveStates):
                held_back.append(operation)
                raise LockUnavailable("nobody knows", maybe_applied=True)

        world.store.before = hold
        work(lambda: held_back, first)
        world.store.before = lambda operation: None
        world.die(first)
        work(lambda: len(world.sent) >= 2, second)
        before = world.states()["a"]
        for late in held_back:
            world.store.memory.perform(late, SECONDS)
        assert world.states()["a"] == before

    def test_a_sending_that_hangs_when_the_lock_is_lost_is_interrupted(self, world: World) -> None:
        scheduler = world.new({"a": 0.1}, etcdlock_ttl=2)
        work(lambda: world.sent, scheduler)
        hung: list[str] = []

        def hang(name: str) -> None:
            hung.append(name)
            world.store.before = cut_off
            threading.Event().wait(60)

        def cut_off(operation: StoreOperation) -> None:
            raise LockUnavailable("cut off")

        world.inner.trouble = hang
        before, began = len(world.sent), time.monotonic()
        work(lambda: hung and scheduler._inner is None, scheduler, seconds=50)
        assert time.monotonic() - began < 30
        assert len(world.sent) == before

    def test_a_lock_that_is_lost_while_etcd_answers_nothing_ends_the_work(self, world: World) -> None:
        scheduler = world.new({"a": 0.05}, etcdlock_ttl=2)
        work(lambda: world.sent, scheduler)

        def cut_off(operation: StoreOperation) -> None:
            raise LockUnavailable("cut off")

        world.store.before = cut_off
        work(lambda: scheduler._inner is None, scheduler)
        before = len(world.sent)
        for _ in range(2):
            scheduler.tick()
        assert len(world.sent) == before


class TestTrouble:
    def test_a_claim_without_an_answer_is_made_once(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        scheduler = world.new({"a": 0.1}, etcdlock_ttl=60)
        work(lambda: world.sent, scheduler)
        lost = itertools.count()

        def lose(operation: StoreOperation) -> None:
            if isinstance(operation, SaveStates) and next(lost) < 12:
                raise LockUnavailable("the answer got lost", maybe_applied=True)

        world.store.after = lose
        before = len(world.sent)
        work(lambda: len(world.sent) >= before + 2, scheduler)
        assert next(lost) > 12
        assert caplog.text.count("etcd is unreachable") == 1
        assert len(set(world.ids("a"))) == len(world.sent)
        assert world.states()["a"].count == len(world.sent), "each claim was one tick that was sent"

    @pytest.mark.parametrize(
        "error",
        [
            OperationalError("away"),
            ConnectionRefusedError(),
            LookupError("no such queue"),
            LockUnavailable("its own lock can't be taken"),
        ],
    )
    def test_a_tick_waits_for_a_broker_that_is_away(self, world: World, error: Exception) -> None:
        scheduler = world.new({"a": 0.3})
        failures: list[str] = []

        def away(name: str) -> None:
            failures.append(name)
            raise error

        world.inner.trouble = away
        work(lambda: failures, scheduler)
        claimed = world.states()["a"]
        assert claimed.phase is Phase.CLAIMED
        world.inner.trouble = lambda name: None
        work(lambda: world.sent, scheduler)
        assert world.ids("a") == [claimed.task_id]
        work(lambda: len(world.sent) >= 2, scheduler)
        first, second = [options["at"] for options in world.sent_of("a")[:2]]
        assert second - first > 0.25, "what fell due meanwhile is one with it"

    def test_a_broker_that_is_away_before_anything_was_sent(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        asked = itertools.count()

        def producer(self: object) -> object:
            if next(asked) < 2:
                raise OperationalError("away")
            return object()

        world.inner.producer = property(producer)
        scheduler = world.new({"a": 0.1})
        work(lambda: world.sent, scheduler)
        assert caplog.text.count("the broker is unreachable") == 1
        assert world.states()["a"].count == 1

    def test_who_asks_twice_whether_an_entry_is_due_gets_one_tick(self, world: World) -> None:
        scheduler = world.new({"a": 0.1})
        work(lambda: world.states(), scheduler)
        inner = scheduler._inner
        assert inner is not None
        wait_for(lambda: inner.is_due(inner.schedule["a"])[0], "it is due")
        claimed = world.states()["a"]
        assert inner.is_due(inner.schedule["a"])[0]
        work(lambda: world.sent, scheduler)
        assert world.ids("a")[0] == claimed.task_id

    def test_at_most_once_does_not_send_again(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        scheduler = world.new({"a": 0.2}, etcdlock_beat_delivery="at_most_once")
        failures: list[str] = []

        def away(name: str) -> None:
            if not failures:
                failures.append(name)
                raise OperationalError("the answer got lost")

        world.inner.trouble = away
        work(lambda: world.sent, scheduler)
        assert "may not have been sent" in caplog.text
        assert world.states()["a"].count == 2

    def test_an_entry_that_can_not_be_sent_at_all_harms_no_other(self, world: World) -> None:
        scheduler = world.new({"bad": 0.05, "good": 0.05})

        def refuse(name: str) -> None:
            if name == "t.bad":
                raise EncodeError("not JSON")

        world.inner.trouble = refuse
        work(lambda: len(world.sent_of("good")) >= 5, scheduler)
        assert world.sent_of("bad") == []
        assert world.states()["bad"].phase is Phase.SKIPPED

    def test_etcd_away_at_the_start(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        def away(operation: StoreOperation) -> None:
            raise LockUnavailable("away")

        world.store.before = away
        scheduler = world.new({"a": 0.05})
        work(lambda: "etcd is unreachable, nothing is scheduled" in caplog.text, scheduler)
        for _ in range(15):
            scheduler.tick()
        assert world.sent == []
        assert caplog.text.count("etcd is unreachable, nothing is scheduled") == 1
        world.store.before = lambda operation: None
        work(lambda: world.sent, scheduler)

    def test_who_is_asked_to_let_go_does(self, world: World) -> None:
        """``etcdlock release beat:...``: the work goes to another."""
        from celery_etcdlock.core.operations import AskToRelease

        first, second = world.new({"a": 0.05}, etcdlock_ttl=5), world.new({"a": 0.05}, etcdlock_ttl=5)
        work(lambda: world.sent, first)
        work(lambda: len(world.holder()) == 2, second)
        owner, waiter = world.holder()
        ask = AskToRelease(f"beat:{world.name}", owner.token, owner.mod_revision, "admin")
        world.store.memory.perform(ask, SECONDS)
        work(lambda: world.holder()[0].token == waiter.token, first, second)
        work(lambda: len(world.holder()) == 2, first, second)
        assert len(set(world.ids("a"))) == len(world.sent)


class TestDeploys:
    def test_two_versions_of_the_schedule(self, world: World) -> None:
        old = world.new({"kept": 0.05, "removed": 3600.0})
        work(lambda: len(world.sent) >= 2 and "removed" in world.states(), old)
        new = world.new({"kept": 0.1, "added": 0.05})
        old.close()
        work(lambda: len(world.sent_of("added")) >= 2, new)
        removed = world.states()["removed"]
        assert removed.absent_since is not None
        work(lambda: world.states()["kept"].schedule == "every 0.1 s", new)
        # Back again, as in a rolling deploy: its last run is the old one.
        new.close()
        back = world.new({"removed": 3600.0})
        work(lambda: back._inner, back)
        back.tick()
        assert world.states()["removed"] == replace(removed, absent_since=None)
        assert world.states()["added"].absent_since is not None

    def test_an_entry_that_was_gone_for_long_begins_anew(self, world: World) -> None:
        gone = time.time() - ABSENT_SECONDS - 10
        world.leave_behind(state("a", ago=90000.0, absent_since=gone), state("b", ago=90000.0, absent_since=gone))
        scheduler = world.new({"a": 3600.0})
        work(lambda: scheduler._inner, scheduler)
        for _ in range(2):
            scheduler.tick()
        assert world.sent == []
        assert world.states().keys() == {"a"}
        assert world.states()["a"].count == 0

    def test_a_claimed_tick_of_an_entry_that_is_gone(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        world.leave_behind(state("gone", ago=5.0, phase=Phase.CLAIMED, task_id="id"))
        scheduler = world.new({"a": 0.05})
        work(lambda: "its entry was removed since" in caplog.text, scheduler)
        work(lambda: len(world.sent) >= 2, scheduler)
        assert world.sent_of("gone") == []


class TestBadInput:
    def test_states_of_a_newer_version(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        world.leave_behind(b'{"v":2,"name":"a"}', key="a")
        scheduler = world.new({"a": 0.05})
        work(lambda: "a newer version" in caplog.text, scheduler)
        scheduler.tick()
        assert (world.sent, scheduler._inner) == ([], None)

    @pytest.mark.parametrize("value", [b"", b"{}", b"\xff", b'{"v":1}', b"[1]", b"x" * 20000, b'{"v":true}'])
    def test_states_that_are_none(self, world: World, value: bytes) -> None:
        world.leave_behind(value, key="a")
        world.leave_behind(value, key=WORK)
        scheduler = world.new({"a": 0.05})
        work(lambda: len(world.sent) >= 2, scheduler)
        assert world.states()["a"].count == len(world.sent)

    def test_names(self, world: World) -> None:
        long = "x" * 10000
        names = [long, long + "y", "", "~work", "a/b", "a", "\ud800", "ä ö"]
        scheduler = world.new({name: {"task": f"t.{index}", "schedule": 0.05} for index, name in enumerate(names)})
        work(lambda: all(len(world.sent_of(str(index))) >= 2 for index in range(len(names))), scheduler)
        assert len(world.states()) == len(names)
        second = world.new(dict.fromkeys(names, 3600.0))
        scheduler.close()
        work(lambda: second._inner, second)
        inner = second._inner
        assert inner is not None
        second.tick()
        assert all(entry.total_run_count for entry in inner.schedule.values())

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            ("nowhere.at:All", "can't be imported"),
            ("celery.beat:Nothing", "can't be imported"),
            ("celery.beat:ScheduleEntry", "is not a scheduler"),
            ("time:sleep", "is not a scheduler"),
            (dict, "is not a scheduler"),
            ("celery_etcdlock.beat:EtcdScheduler", "runs a scheduler and isn't one itself"),
            (7, "must be a scheduler class or its import path"),
            ("", "must be a scheduler class or its import path"),
        ],
    )
    def test_no_scheduler(self, world: World, value: object, says: str) -> None:
        with pytest.raises(ImproperlyConfigured, match=says) as caught:
            EtcdScheduler(world.app({}, etcdlock_beat_scheduler=value), lazy=True)
        assert "etcdlock_beat_scheduler" in str(caught.value)

    def test_apps_of_two_names_do_not_meet(self, world: World) -> None:
        first = world.new({"a": 0.05})
        world.name = f"other{next(_numbers)}"
        second = world.new({"b": 0.05})
        work(lambda: world.sent_of("a") and world.sent_of("b"), first, second)

    def test_a_deployment_with_another_broker_is_told(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        first = world.new({"a": 0.05})
        second = world.new({"a": 0.05}, broker_url="memory://elsewhere")
        work(lambda: world.sent, first)
        work(lambda: "sends to another broker" in caplog.text, second)
        EtcdLocks.from_app(second.app).close()
