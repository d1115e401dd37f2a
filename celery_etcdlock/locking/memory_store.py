"""A lock store in this process's memory, for tests: of this package, and of its users (``memory://``).

It has etcd's semantics (one order of revisions, leases with an end, keys that die with their lease) without a
server. Locks are seen by this process alone, so it protects nothing across workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from celery_etcdlock.core import operations as ops
from celery_etcdlock.core import replies as store_replies
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, decode_record, encode_record
from celery_etcdlock.locking.clock import Clock, boot_time
from celery_etcdlock.native import allocate_mutex

POLL_SECONDS = 0.002


@dataclass
class _Lease:
    ttl_seconds: int
    ends_at: float
    epoch: int | None = None
    keys: set[tuple[str, str]] = field(default_factory=set)
    asked: dict[str, store_replies.ReleaseAsked] = field(default_factory=dict)


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
        self._books: dict[str, dict[str, store_replies.State]] = {}

    def perform(self, operation: ops.StoreOperation, timeout_seconds: float) -> store_replies.StoreReply:
        if isinstance(operation, ops.AwaitChange):
            return self._await_change(operation, timeout_seconds)
        with self._mutex:
            self._expire()
            return self._perform(operation)

    def close(self) -> None:
        """Nothing to close: the locks stay, as they would on a server."""

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

    def _perform(self, operation: ops.StoreOperation) -> store_replies.StoreReply:
        match operation:
            case ops.GrantLease(lease=lease, ttl_seconds=ttl_seconds):
                self._leases.setdefault(lease, _Lease(ttl_seconds, self._clock() + ttl_seconds))
                return store_replies.LeaseGranted(ttl_seconds)
            case ops.RevokeLease(lease=lease):
                self._revoke(lease)
                return store_replies.Done()
            case ops.AskAge(lease=lease):
                asked = self._leases.get(lease)
                if asked is None:
                    return store_replies.LeaseUnknown()
                return store_replies.LeaseAge(self._clock() - asked.ends_at + asked.ttl_seconds, term=1)
            case ops.Look(name=name):
                return self._present(name)
            case ops.LookForMark(task_id=task_id):
                return store_replies.MarkSeen(task_id in self._marks)
            case ops.Unmark(task_id=task_id):
                self._marks.pop(task_id, None)
                return store_replies.Done()
            case ops.LookForDone(delivery=delivery):
                return store_replies.DoneSeen((delivery, delivery.call) in self._done)
            case ops.Release(name=name, token=token, mod_revision=mod_revision, done=done):
                key = self._names.get(name, {}).get(token)
                if key is None or key.mod_revision != mod_revision:
                    return store_replies.NotHeld()
                if done is not None:
                    if done.lease not in self._leases:
                        return store_replies.SessionGone()
                    self._done[done.delivery, done.delivery.call] = done.lease
                self._revision += 1
                self._delete(name, token)
                return store_replies.Released()
            case ops.AskToRelease(name=name, token=token, mod_revision=mod_revision, by=by):
                key = self._names.get(name, {}).get(token)
                holder = self._leases.get(self._lease_of.get((name, token), 0))
                if key is None or key.mod_revision != mod_revision or holder is None:
                    return store_replies.NotHeld()
                self._revision += 1
                holder.asked[token] = store_replies.ReleaseAsked(token, by, self._revision)
                return store_replies.Asked()
            case ops.SaveStates():
                return self._save(operation)
            case ops.LoadStates(book=book):
                return store_replies.StatesSeen(
                    tuple(sorted(self._books.get(book, {}).values(), key=lambda state: state.key))
                )
            case ops.AwaitChange():
                raise TypeError("AwaitChange doesn't run under the mutex")
            case ops.TryEach(tries=tries) | ops.TryAll(tries=tries):
                return self._try_several(tries, all_or_none=isinstance(operation, ops.TryAll))
        state = self._leases.get(operation.lease)
        match operation:
            case ops.MarkDone(lease=lease, delivery=delivery) if state is not None:
                self._done[delivery, delivery.call] = lease
                return store_replies.Done()
            case ops.FenceSession() if state is not None:
                self._revision += 1
                state.epoch = self._revision
                return store_replies.SessionFenced(self._revision, term=1)
            case ops.KeepAlive() if state is not None:
                state.ends_at = self._clock() + state.ttl_seconds
                return store_replies.KeptAlive(state.ttl_seconds, term=1)
            case ops.CheckKeys(keys=keys) if state is not None and state.epoch is not None:
                found = {key: self._names.get(key.name, {}).get(key.token) for key in keys}
                return store_replies.KeysSeen(
                    1,
                    frozenset(
                        key for key, there in found.items() if there is None or there.mod_revision != key.mod_revision
                    ),
                    tuple(state.asked.values()),
                )
            case ops.TryAcquire() | ops.Enqueue() | ops.Promote() if state is not None and state.epoch is not None:
                return self._take(operation, state)
        return store_replies.SessionGone()

    def _save(self, operation: ops.SaveStates) -> store_replies.StoreReply:
        guard = self._names.get(operation.guard.name, {}).get(operation.guard.token)
        if guard is None or guard.mod_revision != operation.guard.mod_revision:
            return store_replies.NotHeld()
        book = self._books.setdefault(operation.book, {})
        there = [book.get(write.key) for write in operation.writes]
        seen = [0 if state is None else state.revision for state in there]
        if seen != [write.seen_revision for write in operation.writes]:
            return store_replies.StatesRefused(tuple(state for state in there if state is not None))
        self._revision += 1
        for write in operation.writes:
            if write.value is None:
                book.pop(write.key, None)
            else:
                book[write.key] = store_replies.State(write.key, write.value, self._revision)
        return store_replies.StatesSaved(self._revision)

    # --- places under a name ----------------------------------------------------------------------------------

    def _take(self, operation: ops.TryAcquire | ops.Enqueue | ops.Promote, state: _Lease) -> store_replies.StoreReply:
        reply = self._taken(operation, state)
        return (
            replace(reply, has_run=self._has_run(operation))
            if isinstance(reply, store_replies.Owned | store_replies.Present)
            else reply
        )

    def _has_run(self, operation: ops.TryAcquire | ops.Enqueue | ops.Promote) -> bool | None:
        delivery = operation.record.delivery
        return (delivery.run, delivery.call) in self._done if operation.record.asks_if_done else None

    def _taken(self, operation: ops.TryAcquire | ops.Enqueue | ops.Promote, state: _Lease) -> store_replies.StoreReply:
        keys = self._names.get(operation.name, {})
        mine = keys.get(operation.token)
        epoch_moved = state.epoch != operation.epoch
        match operation:
            case ops.TryAcquire(seen_revision=seen_revision):
                if mine is not None:
                    return store_replies.Owned(mine.create_revision)
                if epoch_moved:
                    return store_replies.EpochMoved(state.epoch or 0)
                if any(key.create_revision > seen_revision for key in keys.values()):
                    return self._present(operation.name)
                return store_replies.Owned(self._put(operation))
            case ops.Enqueue():
                if mine is not None:
                    return self._present(operation.name)
                if epoch_moved:
                    return store_replies.EpochMoved(state.epoch or 0)
                revision = self._put(operation)
                return store_replies.Queued(self._present(operation.name).keys, revision)
            case ops.Promote(alone=alone):
                if mine is None or mine.mod_revision != operation.mod_revision:
                    return self._present(operation.name)
                if epoch_moved:
                    return store_replies.EpochMoved(state.epoch or 0)
                if alone and any(key.create_revision < mine.create_revision for key in keys.values()):
                    return self._present(operation.name)
                revision = self._put(operation, mine.create_revision)
                if operation.replaces is not None:
                    self._marks[operation.replaces] = operation.lease
                return store_replies.Owned(revision)

    def _try_several(self, tries: tuple[ops.TryAcquire, ...], *, all_or_none: bool) -> store_replies.StoreReply:
        state = self._leases.get(tries[0].lease)
        if state is None or state.epoch is None:
            return store_replies.SessionGone()
        if state.epoch != tries[0].epoch:
            return store_replies.EpochMoved(state.epoch)
        if not all_or_none:
            outcomes = [self._take(each, state) for each in tries]
            return store_replies.EachTried(
                tuple(
                    outcome for outcome in outcomes if isinstance(outcome, store_replies.Owned | store_replies.Present)
                )
            )
        mine = [self._names.get(each.name, {}).get(each.token) for each in tries]
        has_run = self._has_run(tries[0])
        if all(mine):
            return store_replies.Owned(max(key.create_revision for key in mine if key is not None), has_run)
        presents = [self._present(each.name) for each in tries]
        if any(
            key.create_revision > each.seen_revision
            for each, present in zip(tries, presents, strict=True)
            for key in present.keys
        ):
            return store_replies.EachTried(tuple(replace(present, has_run=has_run) for present in presents))
        self._revision += 1
        for each in tries:
            self._write(each, None)
        return store_replies.Owned(self._revision, has_run)

    def _put(self, operation: ops.TryAcquire | ops.Enqueue | ops.Promote, create_revision: int | None = None) -> int:
        self._revision += 1
        return self._write(operation, create_revision)

    def _write(self, operation: ops.TryAcquire | ops.Enqueue | ops.Promote, create_revision: int | None) -> int:
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

    def _present(self, name: str) -> store_replies.Present:
        keys = sorted(self._names.get(name, {}).values(), key=lambda key: key.create_revision)
        return store_replies.Present(tuple(keys), self._revision)

    def _await_change(self, operation: ops.AwaitChange, timeout_seconds: float) -> store_replies.Changed:
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
                return store_replies.Changed()
            self._sleep(POLL_SECONDS)
