"""A lock store in this process's memory, for tests: of this package, and of its users (``memory://``).

It has etcd's semantics (one order of revisions, leases with an end, keys that die with their lease) without a
server. Locks are seen by this process alone, so it protects nothing across workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from celery_etcdlock.core.operations import (
    AskAge,
    AskToRelease,
    AwaitChange,
    CheckKeys,
    Enqueue,
    FenceSession,
    GrantLease,
    KeepAlive,
    LoadStates,
    Look,
    LookForDone,
    LookForMark,
    MarkDone,
    Promote,
    Release,
    RevokeLease,
    SaveStates,
    StoreOperation,
    TryAcquire,
    TryAll,
    TryEach,
    Unmark,
)
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, KeyKind, decode_record, encode_record
from celery_etcdlock.core.replies import (
    Asked,
    Changed,
    Done,
    DoneSeen,
    EachTried,
    EpochMoved,
    KeptAlive,
    KeysSeen,
    LeaseAge,
    LeaseGranted,
    LeaseUnknown,
    MarkSeen,
    NotHeld,
    Owned,
    Present,
    Queued,
    ReleaseAsked,
    Released,
    SessionFenced,
    SessionGone,
    State,
    StatesRefused,
    StatesSaved,
    StatesSeen,
    StoreReply,
)
from celery_etcdlock.locking.clock import Clock, boot_time
from celery_etcdlock.native import allocate_mutex

__all__ = ["MemoryStore"]

POLL_SECONDS = 0.002


@dataclass
class _Lease:
    ttl_seconds: int
    ends_at: float
    epoch: int | None = None
    keys: set[tuple[str, str]] = field(default_factory=set)
    asked: dict[str, ReleaseAsked] = field(default_factory=dict)


class MemoryStore:
    """See the module. ``clock`` may be a test's own; ``sleep`` is called while a change is awaited."""

    def __init__(self, clock: Clock = boot_time, sleep: Callable[[float], object] = time.sleep) -> None:
        self._clock = clock
        self._sleep = sleep
        self._mutex = allocate_mutex()
        self._revision = 1
        self._names: dict[str, dict[str, Key]] = {}
        self._lease_of: dict[tuple[str, str], int] = {}
        self._leases: dict[int, _Lease] = {}
        self._last_deletion: dict[str, int] = {}
        self._marks: dict[str, int] = {}
        self._done: dict[tuple[Delivery, str | None], int] = {}
        self._books: dict[str, dict[str, State]] = {}

    def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        if isinstance(operation, AwaitChange):
            return self._await_change(operation, timeout_seconds)
        with self._mutex:
            self._expire()
            return self._perform(operation)

    def close(self) -> None:
        """Nothing to let go of: the locks stay, as they would on a server."""

    # --- leases and sessions --------------------------------------------------------------------------------

    def _expire(self) -> None:
        now = self._clock()
        for lease in [lease for lease, state in self._leases.items() if now >= state.ends_at]:
            self._revoke(lease)

    def _revoke(self, lease: int) -> None:
        state = self._leases.pop(lease, None)
        if state is not None and (state.keys or state.epoch is not None):
            self._revision += 1
            for name, token in list(state.keys):
                self._delete(name, token)
            self._marks = {task_id: on for task_id, on in self._marks.items() if on != lease}
        self._done = {delivery: on for delivery, on in self._done.items() if on != lease}

    def _perform(self, operation: StoreOperation) -> StoreReply:
        match operation:
            case GrantLease(lease=lease, ttl_seconds=ttl_seconds):
                self._leases.setdefault(lease, _Lease(ttl_seconds, self._clock() + ttl_seconds))
                return LeaseGranted(ttl_seconds)
            case RevokeLease(lease=lease):
                self._revoke(lease)
                return Done()
            case AskAge(lease=lease):
                asked = self._leases.get(lease)
                if asked is None:
                    return LeaseUnknown()
                return LeaseAge(self._clock() - asked.ends_at + asked.ttl_seconds, term=1)
            case Look(name=name):
                return self._present(name)
            case LookForMark(task_id=task_id):
                return MarkSeen(task_id in self._marks)
            case Unmark(task_id=task_id):
                self._marks.pop(task_id, None)
                return Done()
            case LookForDone(delivery=delivery):
                return DoneSeen((delivery, delivery.call) in self._done)
            case Release(name=name, token=token, mod_revision=mod_revision, done=done):
                key = self._names.get(name, {}).get(token)
                if key is None or key.mod_revision != mod_revision:
                    return NotHeld()
                if done is not None:
                    if done.lease not in self._leases:
                        return SessionGone()
                    self._done[done.delivery, done.delivery.call] = done.lease
                self._revision += 1
                self._delete(name, token)
                return Released()
            case AskToRelease(name=name, token=token, mod_revision=mod_revision, by=by):
                key = self._names.get(name, {}).get(token)
                holder = self._leases.get(self._lease_of.get((name, token), 0))
                if key is None or key.mod_revision != mod_revision or holder is None:
                    return NotHeld()
                self._revision += 1
                holder.asked[token] = ReleaseAsked(token, by, self._revision)
                return Asked()
            case SaveStates():
                return self._save(operation)
            case LoadStates(book=book):
                return StatesSeen(tuple(sorted(self._books.get(book, {}).values(), key=lambda state: state.key)))
            case AwaitChange():
                raise TypeError("AwaitChange doesn't run under the mutex")
            case TryEach(tries=tries) | TryAll(tries=tries):
                return self._try_several(tries, all_or_none=isinstance(operation, TryAll))
        state = self._leases.get(operation.lease)
        match operation:
            case MarkDone(lease=lease, delivery=delivery) if state is not None:
                self._done[delivery, delivery.call] = lease
                return Done()
            case FenceSession() if state is not None:
                self._revision += 1
                state.epoch = self._revision
                return SessionFenced(self._revision, term=1)
            case KeepAlive() if state is not None:
                state.ends_at = self._clock() + state.ttl_seconds
                return KeptAlive(state.ttl_seconds, term=1)
            case CheckKeys(keys=keys) if state is not None and state.epoch is not None:
                found = {key: self._names.get(key.name, {}).get(key.token) for key in keys}
                return KeysSeen(
                    1,
                    frozenset(
                        key for key, there in found.items() if there is None or there.mod_revision != key.mod_revision
                    ),
                    tuple(state.asked.values()),
                )
            case TryAcquire() | Enqueue() | Promote() if state is not None and state.epoch is not None:
                return self._take(operation, state)
        return SessionGone()

    def _save(self, operation: SaveStates) -> StoreReply:
        guard = self._names.get(operation.guard.name, {}).get(operation.guard.token)
        if guard is None or guard.mod_revision != operation.guard.mod_revision:
            return NotHeld()
        book = self._books.setdefault(operation.book, {})
        there = [book.get(write.key) for write in operation.writes]
        seen = [0 if state is None else state.revision for state in there]
        if seen != [write.seen_revision for write in operation.writes]:
            return StatesRefused(tuple(state for state in there if state is not None))
        self._revision += 1
        for write in operation.writes:
            if write.value is None:
                book.pop(write.key, None)
            else:
                book[write.key] = State(write.key, write.value, self._revision)
        return StatesSaved(self._revision)

    # --- places under a name ----------------------------------------------------------------------------------

    def _take(self, operation: TryAcquire | Enqueue | Promote, state: _Lease) -> StoreReply:
        reply = self._taken(operation, state)
        return replace(reply, has_run=self._has_run(operation)) if isinstance(reply, Owned | Present) else reply

    def _has_run(self, operation: TryAcquire | Enqueue | Promote) -> bool | None:
        delivery = operation.record.delivery
        if delivery.call is None or operation.record.kind is not KeyKind.HELD:
            return None
        return (delivery.run, delivery.call) in self._done

    def _taken(self, operation: TryAcquire | Enqueue | Promote, state: _Lease) -> StoreReply:
        keys = self._names.get(operation.name, {})
        mine = keys.get(operation.token)
        epoch_moved = state.epoch != operation.epoch
        match operation:
            case TryAcquire(seen_revision=seen_revision):
                if mine is not None:
                    return Owned(mine.create_revision)
                if epoch_moved:
                    return EpochMoved(state.epoch or 0)
                if any(key.create_revision > seen_revision for key in keys.values()):
                    return self._present(operation.name)
                return Owned(self._put(operation))
            case Enqueue():
                if mine is not None:
                    return self._present(operation.name)
                if epoch_moved:
                    return EpochMoved(state.epoch or 0)
                revision = self._put(operation)
                return Queued(self._present(operation.name).keys, revision)
            case Promote(alone=alone):
                if mine is None or mine.mod_revision != operation.mod_revision:
                    return self._present(operation.name)
                if epoch_moved:
                    return EpochMoved(state.epoch or 0)
                if alone and any(key.create_revision < mine.create_revision for key in keys.values()):
                    return self._present(operation.name)
                revision = self._put(operation, mine.create_revision)
                if operation.replaces is not None:
                    self._marks[operation.replaces] = operation.lease
                return Owned(revision)

    def _try_several(self, tries: tuple[TryAcquire, ...], *, all_or_none: bool) -> StoreReply:
        state = self._leases.get(tries[0].lease)
        if state is None or state.epoch is None:
            return SessionGone()
        if state.epoch != tries[0].epoch:
            return EpochMoved(state.epoch)
        if not all_or_none:
            outcomes = [self._take(each, state) for each in tries]
            return EachTried(tuple(outcome for outcome in outcomes if isinstance(outcome, Owned | Present)))
        mine = [self._names.get(each.name, {}).get(each.token) for each in tries]
        has_run = self._has_run(tries[0])
        if all(mine):
            return Owned(max(key.create_revision for key in mine if key is not None), has_run)
        presents = [self._present(each.name) for each in tries]
        if any(
            key.create_revision > each.seen_revision
            for each, present in zip(tries, presents, strict=True)
            for key in present.keys
        ):
            return EachTried(tuple(replace(present, has_run=has_run) for present in presents))
        self._revision += 1
        for each in tries:
            self._write(each, None)
        return Owned(self._revision, has_run)

    def _put(self, operation: TryAcquire | Enqueue | Promote, create_revision: int | None = None) -> int:
        self._revision += 1
        return self._write(operation, create_revision)

    def _write(self, operation: TryAcquire | Enqueue | Promote, create_revision: int | None) -> int:
        # Through the encoding, so that a record behaves here as it does in a real store.
        record = decode_record(encode_record(operation.record))
        key = Key(operation.token, create_revision or self._revision, self._revision, record, operation.lease)
        self._names.setdefault(operation.name, {})[operation.token] = key
        before = self._leases.get(self._lease_of.get((operation.name, operation.token), 0))
        if before is not None:
            before.keys.discard((operation.name, operation.token))
        self._lease_of[operation.name, operation.token] = operation.lease
        self._leases[operation.lease].keys.add((operation.name, operation.token))
        return self._revision

    def _delete(self, name: str, token: str) -> None:
        keys = self._names[name]
        del keys[token]
        if not keys:
            del self._names[name]
        state = self._leases.get(self._lease_of.pop((name, token)))
        if state is not None:
            state.keys.discard((name, token))
        self._last_deletion[name] = self._revision

    def _present(self, name: str) -> Present:
        keys = sorted(self._names.get(name, {}).values(), key=lambda key: key.create_revision)
        return Present(tuple(keys), self._revision)

    def _await_change(self, operation: AwaitChange, timeout_seconds: float) -> Changed:
        ends_at = self._clock() + timeout_seconds
        while True:
            with self._mutex:
                self._expire()
                key = self._names.get(operation.name, {}).get(operation.token or "")
                if operation.token is None:
                    changed = self._last_deletion.get(operation.name, 0) > operation.after_revision
                else:
                    changed = key is None or key.mod_revision > operation.after_revision
            stopped = operation.stop is not None and operation.stop.stopped
            if changed or stopped or self._clock() >= ends_at:
                return Changed()
            self._sleep(POLL_SECONDS)
