"""What the holder of a lock leaves for the next one, on every store: guarded by the lock, and by what was seen."""

from __future__ import annotations

import pytest

from celery_etcdlock.core.operations import (
    FenceSession,
    GrantLease,
    HeldKey,
    LoadStates,
    Promote,
    Release,
    RevokeLease,
    SaveStates,
    StateWrite,
    TryAcquire,
)
from celery_etcdlock.core.protocol import GuardLost, Overtaken, Save, Saved, Unavailable
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import (
    NotHeld,
    Owned,
    SessionFenced,
    State,
    StatesRefused,
    StatesSaved,
    StatesSeen,
    StoreReply,
)
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.clock import boot_time
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.lock_store import LockStore

SECONDS = 5.0
NAME = "beat: a/b"
RECORD = Record(Delivery("beat"), "beat", "host", 1, 0.0)
LEASE = 77


@pytest.fixture
def guard(store: LockStore) -> HeldKey:
    return own(store, "token")


def own(store: LockStore, token: str) -> HeldKey:
    store.perform(GrantLease(LEASE, 60), SECONDS)
    fenced = store.perform(FenceSession(LEASE), SECONDS)
    assert isinstance(fenced, SessionFenced)
    owned = store.perform(TryAcquire(LEASE, fenced.epoch, NAME, token, RECORD), SECONDS)
    assert isinstance(owned, Owned)
    return HeldKey(NAME, token, owned.revision)


def save(store: LockStore, guard: HeldKey, *writes: tuple[str, bytes | None, int], name: str = "lock") -> StoreReply:
    return store.perform(SaveStates(guard, name, tuple(StateWrite(*write) for write in writes)), SECONDS)


def saved(store: LockStore, guard: HeldKey, *writes: tuple[str, bytes | None, int]) -> int:
    reply = save(store, guard, *writes)
    assert isinstance(reply, StatesSaved)
    return reply.revision


def test_states_are_written_once_as_they_were_seen(store: LockStore, guard: HeldKey) -> None:
    assert store.perform(LoadStates("lock"), SECONDS) == StatesSeen(())
    first = saved(store, guard, ("a", b"1", 0), ("b%2F", b'{"x":"\xc3\xa4"}\x00:', 0))
    assert first > guard.mod_revision
    both = (State("a", b"1", first), State("b%2F", b'{"x":"\xc3\xa4"}\x00:', first))
    assert store.perform(LoadStates("lock"), SECONDS) == StatesSeen(both)
    assert save(store, guard, ("a", b"2", 0)) == StatesRefused(both[:1])
    second = saved(store, guard, ("a", b"2", first))
    # All or none: one of the two isn't as it was seen.
    assert save(store, guard, ("a", b"3", first), ("b%2F", b"3", first)) == StatesRefused(
        (State("a", b"2", second), both[1])
    )
    saved(store, guard, ("a", None, second))
    assert store.perform(LoadStates("lock"), SECONDS) == StatesSeen(both[1:])


def test_states_of_different_locks_do_not_mix(store: LockStore, guard: HeldKey) -> None:
    save(store, guard, ("a", b"1", 0), name="a")
    save(store, guard, ("a", b"2", 0), name="a/b")
    seen = [store.perform(LoadStates(name), SECONDS) for name in ("a", "a/b", "a/")]
    assert [[state.value for state in one.states] for one in seen if isinstance(one, StatesSeen)] == [
        [b"1"],
        [b"2"],
        [],
    ]


def test_who_lost_the_lock_saves_nothing_any_more(store: LockStore, guard: HeldKey) -> None:
    revision = saved(store, guard, ("a", b"1", 0))
    store.perform(Release(NAME, "token", guard.mod_revision), SECONDS)
    assert save(store, guard, ("a", b"2", revision)) == NotHeld()
    # Held again under the same token, but by a later write: the fencing token is another.
    again = own(store, "token")
    assert save(store, guard, ("a", b"2", revision)) == NotHeld()
    assert isinstance(save(store, again, ("a", b"2", revision)), StatesSaved)


def test_a_promotion_moves_the_guard(store: LockStore, guard: HeldKey) -> None:
    fenced = store.perform(FenceSession(LEASE), SECONDS)
    assert isinstance(fenced, SessionFenced)
    promote = Promote(LEASE, fenced.epoch, NAME, "token", RECORD, guard.mod_revision, guard.mod_revision, alone=True)
    assert isinstance(store.perform(promote, SECONDS), Owned)
    assert save(store, guard, ("a", b"1", 0)) == NotHeld()


def test_states_outlive_the_lease_and_the_lock(store: LockStore, guard: HeldKey) -> None:
    revision = saved(store, guard, ("a", b"1", 0))
    store.perform(RevokeLease(LEASE), SECONDS)
    assert save(store, guard, ("a", b"2", revision)) == NotHeld()
    assert store.perform(LoadStates("lock"), SECONDS) == StatesSeen((State("a", b"1", revision),))


def test_many_states_are_loaded_whole(store: LockStore, guard: HeldKey) -> None:
    expected = set()
    for start in range(0, 2500, 50):
        keys = [f"entry-{number:05}" for number in range(start, start + 50)]
        saved(store, guard, *((key, b"x" * 100, 0) for key in keys))
        expected |= set(keys)
    seen = store.perform(LoadStates("lock"), 30.0)
    assert isinstance(seen, StatesSeen)
    assert len(seen.states) == 2500
    assert {state.key for state in seen.states} == expected


# --- the machine ------------------------------------------------------------------------------------------------------


class Lossy:
    """A store some of whose answers get lost: ``after``, the operation took effect; ``before``, it never arrived."""

    def __init__(self, store: LockStore, *losses: str) -> None:
        self._store = store
        self._losses = list(losses)

    def perform(self, operation: object, timeout_seconds: float) -> StoreReply:
        loss = self._losses.pop(0) if self._losses else None
        if loss != "before":
            reply = self._store.perform(operation, timeout_seconds)  # type: ignore[arg-type]
        if loss is not None:
            raise LockUnavailable("lost", maybe_applied=True)
        return reply

    def close(self) -> None: ...


def run(store: object, guard: HeldKey, *writes: tuple[str, bytes | None, int], seconds: float = 5.0) -> object:
    deadline = boot_time() + seconds
    machine = Save(guard=guard, name="lock", writes=tuple(StateWrite(*write) for write in writes), deadline=deadline)
    return drive(machine, store, boot_time)  # type: ignore[arg-type]


@pytest.mark.parametrize("losses", [("after",), ("before",), ("after", "after"), ("before", "after", "before")])
def test_a_save_whose_answer_is_lost_takes_effect_once(store: LockStore, guard: HeldKey, losses: tuple[str]) -> None:
    outcome = run(Lossy(store, *losses), guard, ("a", b"mine", 0), ("b", b"mine", 0))
    assert isinstance(outcome, Saved)
    states = store.perform(LoadStates("lock"), SECONDS)
    assert isinstance(states, StatesSeen)
    assert tuple(state.revision for state in states.states) == outcome.revisions
    assert [state.value for state in states.states] == [b"mine", b"mine"]


def test_somebody_elses_state_is_not_taken_for_ours(store: LockStore, guard: HeldKey) -> None:
    revision = saved(store, guard, ("a", b"theirs", 0))
    outcome = run(Lossy(store, "before"), guard, ("a", b"mine", 0))
    assert outcome == Overtaken((State("a", b"theirs", revision),))


def test_a_lock_that_was_lost_meanwhile_ends_the_save(store: LockStore, guard: HeldKey) -> None:
    store.perform(Release(NAME, "token", guard.mod_revision), SECONDS)
    assert run(store, guard, ("a", b"mine", 0)) == GuardLost(doubtful=False)
    assert run(Lossy(store, "before"), guard, ("a", b"mine", 0)) == GuardLost(doubtful=True)


def test_a_save_without_an_answer_is_in_doubt_and_may_be_repeated_as_it_was(store: LockStore, guard: HeldKey) -> None:
    outcome = run(Lossy(store, *["after"] * 100), guard, ("a", b"mine", 0), seconds=0.2)
    assert isinstance(outcome, Unavailable)
    assert outcome.doubtful
    assert isinstance(run(store, guard, ("a", b"mine", 0)), Saved)
