"""A lock store in this process's memory, for tests: of this package, and of its users (``memory://``).

It has etcd's semantics (one order of revisions, leases with an end, keys that die with their lease) without a
server. Locks are seen by this process alone, so it protects nothing across workers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from celery_etcdlock.core import operations as ops
from celery_etcdlock.core import replies
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, decode_record, encode_record
from celery_etcdlock.locking.clock import Clock, boot_time
from celery_etcdlock.native import allocate_mutex

POLL_SECONDS = 0.002


#: An operation that puts a key, or rewrites it.
Put = ops.TryAcquire | ops.Enqueue | ops.Promote


@dataclass
class _Lease:
    ttl_seconds: int
    ends_at: float
    epoch: int | None = None
    asked: dict[str, replies.ReleaseAsked] = field(default_factory=dict)


class MemoryStore:
    """See the module. ``clock`` may be a test's own."""

    def __init__(self, clock: Clock = boot_time) -> None:
        self._clock = clock
        self._mutex = allocate_mutex()
        self._revision = 1
        self._names: dict[str, dict[str, Key]] = {}
        self._leases: dict[int, _Lease] = {}
        self._last_deletion: dict[str, int] = {}
        self._marks: dict[str, int] = {}
        self._done: dict[tuple[Delivery, str | None], int] = {}
        self._states: dict[str, dict[str, replies.State]] = {}

    def perform(self, operation: ops.StoreOperation, timeout_seconds: float) -> replies.StoreReply:
        if isinstance(operation, ops.AwaitChange):
            return self._await_change(operation, timeout_seconds)
        with self._mutex:
            self._expire()
            return self._perform(operation)

    def close(self) -> None:
        """Nothing to close: the locks stay, as they would on a server."""

    def _expire(self) -> None:
        now = self._clock()
        for lease in [lease for lease, state in self._leases.items() if now >= state.ends_at]:
            self._revoke(lease)

    def _revoke(self, lease: int) -> None:
        state = self._leases.pop(lease, None)
        on_lease = [
            (name, key.token) for name in self._names for key in self._names[name].values() if key.lease == lease
        ]
        if state is not None and (on_lease or state.epoch is not None):
            self._revision += 1
            for name, token in on_lease:
                self._delete(name, token)
            self._marks = {task_id: on for task_id, on in self._marks.items() if on != lease}
        self._done = {delivery: on for delivery, on in self._done.items() if on != lease}

    def _key(self, name: str, token: str, mod_revision: int) -> Key | None:
        """The key, if it is as it was known."""
        key = self._names.get(name, {}).get(token)
        return key if key is not None and key.mod_revision == mod_revision else None

    def _perform(self, operation: ops.StoreOperation) -> replies.StoreReply:
        match operation:
            case ops.GrantLease(lease=lease, ttl_seconds=ttl_seconds):
                self._leases.setdefault(lease, _Lease(ttl_seconds, self._clock() + ttl_seconds))
                return replies.LeaseGranted(ttl_seconds)
            case ops.RevokeLease(lease=lease):
                self._revoke(lease)
                return replies.Done()
            case ops.AskAge(lease=lease):
                asked = self._leases.get(lease)
                if asked is None:
                    return replies.LeaseUnknown()
                return replies.LeaseAge(self._clock() - asked.ends_at + asked.ttl_seconds, term=1)
            case ops.Look(name=name):
                return self._present(name)
            case ops.LookForMark(task_id=task_id):
                return replies.MarkSeen(task_id in self._marks)
            case ops.Unmark(task_id=task_id):
                self._marks.pop(task_id, None)
                return replies.Done()
            case ops.LookForDone(delivery=delivery):
                return replies.DoneSeen((delivery, delivery.call) in self._done)
            case ops.Release(name=name, token=token, mod_revision=mod_revision, done=done):
                if self._key(name, token, mod_revision) is None:
                    return replies.NotHeld()
                if done is not None:
                    if done.lease not in self._leases:
                        return replies.SessionGone()
                    self._done[done.delivery, done.delivery.call] = done.lease
                self._revision += 1
                self._delete(name, token)
                return replies.Released()
            case ops.AskToRelease(name=name, token=token, mod_revision=mod_revision, by=by):
                key = self._key(name, token, mod_revision)
                if key is None:
                    return replies.NotHeld()
                self._revision += 1
                self._leases[key.lease].asked[token] = replies.ReleaseAsked(token, by, self._revision)
                return replies.Asked()
            case ops.SaveStates():
                return self._save(operation)
            case ops.LoadStates(name=name):
                states = self._states.get(name, {})
                return replies.StatesSeen(tuple(states[key] for key in sorted(states)))
            case ops.AwaitChange():
                raise TypeError("AwaitChange doesn't run under the mutex")
            case ops.TryEach(tries=tries) | ops.TryAll(tries=tries):
                return self._try_several(tries, all_or_none=isinstance(operation, ops.TryAll))
        state = self._leases.get(operation.lease)
        match operation:
            case ops.MarkDone(lease=lease, delivery=delivery) if state is not None:
                self._done[delivery, delivery.call] = lease
                return replies.Done()
            case ops.FenceSession() if state is not None:
                self._revision += 1
                state.epoch = self._revision
                return replies.SessionFenced(self._revision, term=1)
            case ops.KeepAlive() if state is not None:
                state.ends_at = self._clock() + state.ttl_seconds
                return replies.KeptAlive(state.ttl_seconds, term=1)
            case ops.CheckKeys(keys=keys) if state is not None and state.epoch is not None:
                missing = frozenset(key for key in keys if self._key(key.name, key.token, key.mod_revision) is None)
                return replies.KeysSeen(1, missing, tuple(state.asked.values()))
            case ops.TryAcquire() | ops.Enqueue() | ops.Promote() if state is not None and state.epoch is not None:
                return self._take(operation, state)
        return replies.SessionGone()

    def _save(self, operation: ops.SaveStates) -> replies.StoreReply:
        guard = operation.guard
        if self._key(guard.name, guard.token, guard.mod_revision) is None:
            return replies.NotHeld()
        states = self._states.setdefault(operation.name, {})
        there = [states.get(write.key) for write in operation.writes]
        seen = [0 if state is None else state.revision for state in there]
        if seen != [write.seen_revision for write in operation.writes]:
            return replies.StatesRefused(tuple(state for state in there if state is not None))
        self._revision += 1
        for write in operation.writes:
            if write.value is None:
                states.pop(write.key, None)
            else:
                states[write.key] = replies.State(write.key, write.value, self._revision)
        return replies.StatesSaved(self._revision)

    def _take(self, operation: Put, state: _Lease) -> replies.StoreReply:
        reply = self._try(operation, state)
        if isinstance(reply, replies.Owned | replies.Present):
            return replace(reply, has_run=self._has_run(operation))
        return reply

    def _has_run(self, operation: Put) -> bool | None:
        delivery = operation.record.delivery
        return (delivery.run, delivery.call) in self._done if operation.record.asks_if_done else None

    def _try(self, operation: Put, state: _Lease) -> replies.StoreReply:
        """First what an earlier try of the same did, then whether the session's epoch is the one that was meant."""
        keys = self._names.get(operation.name, {})
        mine = keys.get(operation.token)
        if isinstance(operation, ops.Promote):
            if mine is None or mine.mod_revision != operation.mod_revision:
                return self._present(operation.name)
        elif mine is not None:
            is_try = isinstance(operation, ops.TryAcquire)
            return replies.Owned(mine.create_revision) if is_try else self._present(operation.name)
        if state.epoch != operation.epoch:
            return replies.EpochMoved(state.epoch or 0)
        match operation:
            case ops.TryAcquire(seen_revision=seen_revision):
                if any(key.create_revision > seen_revision for key in keys.values()):
                    return self._present(operation.name)
                return replies.Owned(self._put(operation))
            case ops.Enqueue():
                revision = self._put(operation)
                return replies.Queued(self._present(operation.name).keys, revision)
            case ops.Promote(alone=alone):
                assert mine is not None
                if alone and any(key.create_revision < mine.create_revision for key in keys.values()):
                    return self._present(operation.name)
                if operation.replaces is not None:
                    self._marks[operation.replaces] = operation.lease
                return replies.Owned(self._put(operation, mine.create_revision))

    def _try_several(self, tries: tuple[ops.TryAcquire, ...], *, all_or_none: bool) -> replies.StoreReply:
        state = self._leases.get(tries[0].lease)
        if state is None or state.epoch is None:
            return replies.SessionGone()
        if state.epoch != tries[0].epoch:
            return replies.EpochMoved(state.epoch)
        if not all_or_none:
            outcomes: Any = tuple(self._take(each, state) for each in tries)
            return replies.EachTried(outcomes)
        mine = [self._names.get(each.name, {}).get(each.token) for each in tries]
        has_run = self._has_run(tries[0])
        if all(mine):
            return replies.Owned(max(key.create_revision for key in mine if key is not None), has_run)
        presents = [replace(self._present(each.name), has_run=has_run) for each in tries]
        for each, present in zip(tries, presents, strict=True):
            if any(key.create_revision > each.seen_revision for key in present.keys):
                return replies.EachTried(tuple(presents))
        self._revision += 1
        for each in tries:
            self._write(each, None)
        return replies.Owned(self._revision, has_run)

    def _put(self, operation: Put, create_revision: int | None = None) -> int:
        self._revision += 1
        self._write(operation, create_revision)
        return self._revision

    def _write(self, operation: Put, create_revision: int | None) -> None:
        # Through the encoding, so that a record behaves here as it does in a real store.
        record = decode_record(encode_record(operation.record))
        key = Key(operation.token, create_revision or self._revision, self._revision, record, operation.lease)
        self._names.setdefault(operation.name, {})[operation.token] = key

    def _delete(self, name: str, token: str) -> None:
        keys = self._names[name]
        del keys[token]
        if not keys:
            del self._names[name]
        self._last_deletion[name] = self._revision

    def _present(self, name: str) -> replies.Present:
        keys = sorted(self._names.get(name, {}).values(), key=lambda key: key.create_revision)
        return replies.Present(tuple(keys), self._revision)

    def _await_change(self, operation: ops.AwaitChange, timeout_seconds: float) -> replies.Changed:
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
                return replies.Changed()
            time.sleep(POLL_SECONDS)
