"""What every LockStore does with the protocol's operations, one by one."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace

import pytest

from celery_etcdlock.core.operations import (
    AskToRelease,
    AwaitChange,
    CheckKeys,
    Enqueue,
    FenceSession,
    GrantLease,
    HeldKey,
    KeepAlive,
    Look,
    Promote,
    Release,
    RevokeLease,
    TryAcquire,
)
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import (
    Asked,
    Changed,
    Done,
    EpochMoved,
    KeptAlive,
    KeysSeen,
    LeaseGranted,
    NotHeld,
    Owned,
    Present,
    Queued,
    Released,
    SessionFenced,
    SessionGone,
)
from celery_etcdlock.locking.lock_store import LockStore
from tests.waiting import wait_for

SECONDS = 5.0
RECORD = Record(Delivery("task-id", 1, 2, 3), "proj.task", "host", 42, 1700000000.5, broker="abc")
_leases = itertools.count(time.time_ns() & 0xFFFFFFFFFFFF)


class Session:
    """A session opened by hand."""

    def __init__(self, store: LockStore, ttl_seconds: int = 60) -> None:
        self.store = store
        self.lease = next(_leases)
        assert store.perform(GrantLease(self.lease, ttl_seconds), SECONDS) == LeaseGranted(ttl_seconds)
        self.epoch = self.fence()

    def fence(self) -> int:
        reply = self.store.perform(FenceSession(self.lease), SECONDS)
        assert isinstance(reply, SessionFenced)
        return reply.epoch

    def attempt(self, name: str, token: str, seen: int = 0, record: Record = RECORD) -> object:
        operation = TryAcquire(self.lease, self.epoch, name, token, record, seen)
        return self.store.perform(operation, SECONDS)

    def own(self, name: str, token: str, seen: int = 0) -> int:
        reply = self.attempt(name, token, seen)
        assert isinstance(reply, Owned)
        return reply.revision

    def enqueue(self, name: str, token: str) -> Queued:
        reply = self.store.perform(Enqueue(self.lease, self.epoch, name, token, RECORD), SECONDS)
        assert isinstance(reply, Queued)
        return reply

    def promote(self, name: str, token: str, created: int, written: int, *, alone: bool = True) -> object:
        operation = Promote(self.lease, self.epoch, name, token, RECORD, created, written, alone)
        return self.store.perform(operation, SECONDS)

    def look(self, name: str) -> Present:
        reply = self.store.perform(Look(name), SECONDS)
        assert isinstance(reply, Present)
        return reply

    def check(self, *keys: HeldKey) -> object:
        return self.store.perform(CheckKeys(self.lease, keys), SECONDS)


@pytest.fixture
def session(store: LockStore) -> Session:
    return Session(store)


class TestTry:
    def test_a_free_lock_is_owned_and_its_record_comes_back_whole(self, session: Session) -> None:
        revision = session.own("a", "t1")
        [key] = session.look("a").keys
        assert (key.token, key.mod_revision, key.record) == ("t1", revision, RECORD)

    def test_a_held_lock_answers_with_its_keys(self, session: Session) -> None:
        revision = session.own("a", "t1")
        reply = session.attempt("a", "t2")
        assert isinstance(reply, Present)
        assert [(key.token, key.mod_revision) for key in reply.keys] == [("t1", revision)]
        assert reply.revision >= revision

    def test_a_repeat_finds_its_own_key_and_writes_nothing(self, session: Session) -> None:
        revision = session.own("a", "t1")
        assert session.attempt("a", "t1") == Owned(revision)
        assert session.look("a").keys[0].mod_revision == revision

    def test_every_new_ownership_has_a_higher_revision(self, session: Session) -> None:
        seen = []
        for number in range(5):
            revision = session.own("a", f"t{number}")
            session.store.perform(Release("a", f"t{number}", revision), SECONDS)
            seen.append(revision)
        assert seen == sorted(set(seen))

    @pytest.mark.parametrize(("one", "other"), [("a", "a/b"), ("a", "ab"), ("a", "a0"), ("a b", "a%20b"), ("ü", "u")])
    def test_names_do_not_mix(self, session: Session, one: str, other: str) -> None:
        session.own(one, "t1")
        session.own(other, "t2")
        assert [key.token for key in session.look(one).keys] == ["t1"]
        assert [key.token for key in session.look(other).keys] == ["t2"]

    def test_a_name_of_ten_thousand_characters(self, session: Session) -> None:
        session.own("ü" * 10_000, "t1")
        assert isinstance(session.attempt("ü" * 10_000, "t2"), Present)
        session.own("ü" * 9_999, "t3")

    def test_a_later_place_is_taken_only_if_nothing_came_since_it_was_seen(self, session: Session) -> None:
        session.own("a", "t1")
        seen = session.look("a").revision
        session.own("a", "t2", seen)
        late = session.attempt("a", "t3", seen)
        assert isinstance(late, Present)
        assert [key.token for key in late.keys] == ["t1", "t2"]


class TestEpoch:
    def test_what_names_an_old_epoch_does_nothing(self, session: Session) -> None:
        queued = session.enqueue("q", "t1")
        old = session.epoch
        moved = session.fence()
        assert moved > old
        assert session.attempt("a", "t2") == EpochMoved(moved)
        assert session.store.perform(Enqueue(session.lease, old, "a", "t3", RECORD), SECONDS) == EpochMoved(moved)
        assert session.promote("q", "t1", queued.revision, queued.revision) == EpochMoved(moved)
        assert session.look("a").keys == ()
        assert session.look("q").keys[0].mod_revision == queued.revision

    def test_a_repeat_finds_its_own_key_although_the_epoch_moved(self, session: Session) -> None:
        revision = session.own("a", "t1")
        session.fence()
        assert session.attempt("a", "t1") == Owned(revision)

    def test_a_session_that_is_gone_takes_no_place(self, session: Session) -> None:
        assert session.store.perform(RevokeLease(session.lease), SECONDS) == Done()
        assert session.attempt("a", "t1") == SessionGone()
        assert session.store.perform(Enqueue(session.lease, session.epoch, "a", "t", RECORD), SECONDS) == SessionGone()
        assert session.promote("a", "t1", 1, 1) == SessionGone()
        assert session.store.perform(FenceSession(session.lease), SECONDS) == SessionGone()
        assert session.store.perform(KeepAlive(session.lease), SECONDS) == SessionGone()
        assert session.check() == SessionGone()
        assert session.look("a").keys == ()

    def test_granting_and_revoking_twice_is_granting_and_revoking(self, session: Session) -> None:
        assert session.store.perform(GrantLease(session.lease, 60), SECONDS) == LeaseGranted(60)
        assert session.store.perform(RevokeLease(session.lease), SECONDS) == Done()
        assert session.store.perform(RevokeLease(session.lease), SECONDS) == Done()

    def test_a_lease_takes_its_keys_along_and_no_others(self, store: LockStore) -> None:
        one, other = Session(store), Session(store)
        one.own("a", "t1")
        one.own("b", "t2")
        other.own("c", "t3")
        store.perform(RevokeLease(one.lease), SECONDS)
        assert [other.look(name).keys == () for name in "abc"] == [True, True, False]

    def test_a_lease_that_is_not_renewed_runs_out(self, store: LockStore) -> None:
        session = Session(store, ttl_seconds=2)
        session.own("a", "t1")
        wait_for(lambda: session.look("a").keys == (), "the key goes with its lease", 10)
        assert session.store.perform(KeepAlive(session.lease), SECONDS) == SessionGone()


class TestRelease:
    def test_only_the_key_as_it_was_written_is_deleted(self, session: Session) -> None:
        revision = session.own("a", "t1")
        assert session.store.perform(Release("a", "t1", revision - 1), SECONDS) == NotHeld()
        assert session.store.perform(Release("a", "t2", revision), SECONDS) == NotHeld()
        assert len(session.look("a").keys) == 1
        assert session.store.perform(Release("a", "t1", revision), SECONDS) == Released()
        assert session.store.perform(Release("a", "t1", revision), SECONDS) == NotHeld()
        assert session.look("a").keys == ()


class TestQueue:
    def test_places_are_in_order_of_arrival(self, session: Session) -> None:
        session.own("a", "t1")
        session.enqueue("a", "t2")
        queued = session.enqueue("a", "t3")
        assert [key.token for key in queued.keys] == ["t1", "t2", "t3"]
        assert queued.keys[-1].create_revision == queued.keys[-1].mod_revision == queued.revision

    def test_a_repeat_keeps_its_place(self, session: Session) -> None:
        session.enqueue("a", "t1")
        session.enqueue("a", "t2")
        repeat = session.store.perform(Enqueue(session.lease, session.epoch, "a", "t1", RECORD), SECONDS)
        assert isinstance(repeat, Present)
        assert [key.token for key in repeat.keys] == ["t1", "t2"]

    def test_only_the_first_is_promoted(self, session: Session) -> None:
        owner = session.own("a", "t1")
        queued = session.enqueue("a", "t2")
        refused = session.promote("a", "t2", queued.revision, queued.revision)
        assert isinstance(refused, Present)
        session.store.perform(Release("a", "t1", owner), SECONDS)
        promoted = session.promote("a", "t2", queued.revision, queued.revision)
        assert isinstance(promoted, Owned)
        [key] = session.look("a").keys
        assert (key.create_revision, key.mod_revision) == (queued.revision, promoted.revision)
        assert promoted.revision > queued.revision

    def test_a_promotion_is_guarded_by_the_key_as_it_was_written(self, session: Session) -> None:
        queued = session.enqueue("a", "t1")
        first = session.promote("a", "t1", queued.revision, queued.revision)
        assert isinstance(first, Owned)
        again = session.promote("a", "t1", queued.revision, queued.revision)
        assert isinstance(again, Present)
        assert again.keys[0].mod_revision == first.revision

    def test_among_several_owners_only_the_own_key_guards(self, session: Session) -> None:
        session.own("a", "t1")
        queued = session.enqueue("a", "t2")
        assert isinstance(session.promote("a", "t2", queued.revision, queued.revision, alone=False), Owned)

    def test_a_promotion_without_a_key_does_nothing(self, session: Session) -> None:
        assert session.promote("a", "t1", 5, 5) == Present((), session.look("a").revision)


class TestCheck:
    def test_keys_as_we_wrote_them_are_seen(self, session: Session) -> None:
        keys = [HeldKey(f"n{number}", "t", session.own(f"n{number}", "t")) for number in range(250)]
        kept = session.store.perform(KeepAlive(session.lease), SECONDS)
        assert isinstance(kept, KeptAlive)
        assert kept.ttl_seconds == 60
        assert session.check(*keys) == KeysSeen(kept.term, frozenset())

    def test_deleted_and_rewritten_keys_are_missing(self, session: Session) -> None:
        tokens = [f"t{number}" for number in range(150)]
        keys = [HeldKey(token, token, session.own(token, token)) for token in tokens]
        session.store.perform(Release("t3", "t3", keys[3].mod_revision), SECONDS)
        session.store.perform(Release("t120", "t120", keys[120].mod_revision), SECONDS)
        session.own("t120", "t120")
        reply = session.check(*keys)
        assert isinstance(reply, KeysSeen)
        assert {key.token for key in reply.missing} == {"t3", "t120"}

    def test_who_asks_to_let_go_is_seen_by_the_session_that_holds_the_key(self, session: Session) -> None:
        key = HeldKey("a", "t", session.own("a", "t"))
        other = Session(session.store)
        ask = AskToRelease("a", "t", key.mod_revision, "somebody")
        assert session.store.perform(ask, SECONDS) == Asked()
        reply, others = session.check(key), other.check()
        assert isinstance(reply, KeysSeen)
        assert isinstance(others, KeysSeen)
        assert [(each.token, each.by) for each in reply.asked] == [("t", "somebody")]
        assert reply.missing == frozenset()
        assert others.asked == ()
        assert reply.asked[0].revision > key.mod_revision
        assert session.store.perform(replace(ask, token="gone"), SECONDS) == NotHeld()
        assert session.store.perform(Release("a", "t", key.mod_revision), SECONDS) == Released()
        again = session.own("a", "t")
        assert session.store.perform(ask, SECONDS) == NotHeld()
        later = session.check(HeldKey("a", "t", again))
        assert isinstance(later, KeysSeen)
        assert all(each.revision < again for each in later.asked)

    def test_no_keys_is_a_check_of_the_session(self, session: Session) -> None:
        assert isinstance(session.check(), KeysSeen)


class TestWatch:
    def await_in_thread(self, store: LockStore, operation: AwaitChange) -> tuple[threading.Thread, list[object]]:
        seen: list[object] = []
        thread = threading.Thread(target=lambda: seen.append(store.perform(operation, 20.0)))
        thread.start()
        return thread, seen

    def test_a_deletion_under_the_name_wakes(self, session: Session) -> None:
        revision = session.own("a", "t1")
        thread, seen = self.await_in_thread(session.store, AwaitChange("a", session.look("a").revision))
        session.own("b", "t2")
        session.store.perform(Release("a", "t1", revision), SECONDS)
        thread.join(10)
        assert seen == [Changed()]

    def test_a_put_under_the_name_does_not_wake_who_waits_for_deletions(self, session: Session) -> None:
        session.own("a", "t1")
        after = session.look("a").revision
        session.enqueue("a", "t2")
        started = time.monotonic()
        assert session.store.perform(AwaitChange("a", after), 0.5) == Changed()
        assert time.monotonic() - started >= 0.4

    def test_a_rewrite_of_the_key_wakes_who_waits_for_it(self, session: Session) -> None:
        queued = session.enqueue("a", "t1")
        thread, seen = self.await_in_thread(session.store, AwaitChange("a", queued.revision, "t1"))
        session.promote("a", "t1", queued.revision, queued.revision)
        thread.join(10)
        assert seen == [Changed()]

    def test_a_change_before_the_wait_began_is_found(self, session: Session) -> None:
        revision = session.own("a", "t1")
        after = session.look("a").revision
        session.store.perform(Release("a", "t1", revision), SECONDS)
        started = time.monotonic()
        assert session.store.perform(AwaitChange("a", after), 10.0) == Changed()
        assert time.monotonic() - started < 5
