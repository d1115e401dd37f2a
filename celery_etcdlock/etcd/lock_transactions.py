"""Places under a lock's name: how each operation reads as one transaction, and what its answer means.

A transaction that takes a place compares the session's epoch, so a request that arrives late, after the session was
fenced, does nothing. When a comparison fails, the same transaction reads what decides why: the session's key and the
keys under the name, in one view.

A try-lock reads all keys under the name. One in line reads as much however many wait with it: the first ``limit`` keys
and one more, which tell who owns and whether it is next, its own, and the one just before it, which it watches. A
smaller limit that somebody else recorded is seen among those as soon as it matters: fewer than ``limit`` that precede
are all of them.

Whether the run that asks has come to its end before is the last thing that such a transaction reads, where it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from celery_etcdlock.core import operations as ops
from celery_etcdlock.core import replies
from celery_etcdlock.core.ownership import Key, find_key
from celery_etcdlock.core.record import encode_record
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.key_layout import (
    Compare,
    Fields,
    Layout,
    delete,
    end_of,
    is_at,
    keys_in,
    put,
    read,
    unchanged,
)

Transaction = ops.PlaceOperation | ops.TryEach | ops.TryAll
Write = ops.TryAcquire | ops.Enqueue | ops.Promote

RangeRequest = messages.RangeRequest


class LockTransactions:
    """Encodes and decodes the operations on places; sends nothing."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._codecs: dict[type[Any], tuple[Callable[[Any], Fields], Callable[[Any, Any, int], replies.StoreReply]]] = {
            ops.TryAcquire: (self._try_acquire, self._tried),
            ops.TryEach: (self._try_each, self._each_tried),
            ops.TryAll: (self._try_all, self._all_tried),
            ops.Enqueue: (self._enqueue, self._enqueued),
            ops.Promote: (self._promote, self._promoted),
            ops.Release: (self._release, self._released),
        }

    def request(self, operation: Transaction) -> Fields:
        """The operation as the fields of a ``TxnRequest``."""
        return self._codecs[type(operation)][0](operation)

    def reply(self, operation: Transaction, response: Any, revision: int) -> replies.StoreReply:
        """What a ``TxnResponse`` means. ``revision`` is the store's after the transaction."""
        return self._codecs[type(operation)][1](operation, response, revision)

    # --- requests -------------------------------------------------------------------------------------------

    def _try_acquire(self, operation: ops.TryAcquire) -> Fields:
        session = self._layout.session_key(operation.lease)
        free, ours, all_keys = self._one_try(operation)
        done = self._done(operation)
        return {
            "compare": [unchanged(session, operation.epoch), free],
            "success": [ours, *done],
            "failure": [read(session, keys_only=True), all_keys, *done],
        }

    def _try_each(self, operation: ops.TryEach) -> Fields:
        first = operation.tries[0]
        session = self._layout.session_key(first.lease)
        nested = [
            {"compare": [free], "success": [ours], "failure": [all_keys]}
            for free, ours, all_keys in map(self._one_try, operation.tries)
        ]
        return {
            "compare": [unchanged(session, first.epoch)],
            "success": [{"request_txn": each} for each in nested],
            "failure": [read(session, keys_only=True)],
        }

    def _try_all(self, operation: ops.TryAll) -> Fields:
        first = operation.tries[0]
        session = self._layout.session_key(first.lease)
        free, ours, all_keys = zip(*map(self._one_try, operation.tries), strict=True)
        done = self._done(first)
        return {
            "compare": [unchanged(session, first.epoch), *free],
            "success": [*ours, *done],
            "failure": [read(session, keys_only=True), *all_keys, *done],
        }

    def _one_try(self, operation: ops.TryAcquire) -> tuple[Fields, Fields, Fields]:
        """Compare: no key was created under the name since the caller looked. Write ours; else read all of them."""
        start = self._layout.name_start(operation.name)
        free = _created(start, Compare.LESS, operation.seen_revision + 1)
        return free, _put(start + operation.token.encode(), operation), read(start, end_of(start))

    def _enqueue(self, operation: ops.Enqueue) -> Fields:
        key, session = self._layout.key(operation.name, operation.token), self._layout.session_key(operation.lease)
        queue = self._queue(operation)
        return {
            "compare": [unchanged(session, operation.epoch), unchanged(key, 0)],
            "success": [_put(key, operation), *queue],
            "failure": [read(session, keys_only=True), *queue],
        }

    def _promote(self, operation: ops.Promote) -> Fields:
        key, session = self._layout.key(operation.name, operation.token), self._layout.session_key(operation.lease)
        compare = [unchanged(session, operation.epoch), unchanged(key, operation.mod_revision)]
        if operation.alone:
            start = self._layout.name_start(operation.name)
            compare.append(_created(start, Compare.GREATER, operation.create_revision - 1))
        success = [_put(key, operation)]
        if operation.replaces is not None:
            success.append(put(self._layout.mark(operation.replaces), lease=operation.lease))
        success += self._done(operation)
        why = [read(session, keys_only=True), *self._queue(operation, operation.create_revision)]
        return {"compare": compare, "success": success, "failure": why}

    def _release(self, operation: ops.Release) -> Fields:
        key = self._layout.key(operation.name, operation.token)
        success = [delete(key)]
        if operation.done is not None:
            success.append(put(self._layout.done_mark(operation.done.delivery), lease=operation.done.lease))
        return {"compare": [unchanged(key, operation.mod_revision)], "success": success}

    def _done(self, operation: ops.TryAcquire | ops.Promote) -> list[Fields]:
        """Read the mark of the run that asks, if its messages can be told from those of another call."""
        if not operation.record.asks_if_done:
            return []
        return [read(self._layout.done_mark(operation.record.delivery.run), keys_only=True)]

    def _queue(self, operation: ops.Enqueue | ops.Promote, create_revision: int = 0) -> list[Fields]:
        """Reads: our own key, the first in the queue, and the one just before ours (0: ours is the last)."""
        start = self._layout.name_start(operation.name)
        by_age = {"key": start, "range_end": end_of(start), "sort_target": RangeRequest.CREATE}
        first = {**by_age, "sort_order": RangeRequest.ASCEND, "limit": operation.record.limit + 1}
        before = {**by_age, "sort_order": RangeRequest.DESCEND, "limit": 2, "max_create_revision": create_revision}
        mine = read(self._layout.key(operation.name, operation.token))
        return [mine, {"request_range": first}, {"request_range": before}]

    # --- replies --------------------------------------------------------------------------------------------

    def _tried(self, operation: ops.TryAcquire, response: Any, revision: int) -> replies.StoreReply:
        has_run = _has_run(operation, response)
        if response.succeeded:
            return replies.Owned(revision, has_run)
        refused = self._why_refused(operation, response, revision)
        if not isinstance(refused, replies.Present):
            return refused
        return _mine_or_all(operation, refused.keys, revision, has_run)

    def _each_tried(self, operation: ops.TryEach, response: Any, revision: int) -> replies.StoreReply:
        if not response.succeeded:
            return _moved_or_gone(response)
        outcomes: list[replies.Owned | replies.Present] = []
        for each, one in zip(operation.tries, response.responses, strict=True):
            if one.response_txn.succeeded:
                outcomes.append(replies.Owned(revision))
            else:
                keys = self._keys(one.response_txn.responses, each.name)
                outcomes.append(_mine_or_all(each, keys, revision))
        return replies.EachTried(tuple(outcomes))

    def _all_tried(self, operation: ops.TryAll, response: Any, revision: int) -> replies.StoreReply:
        tries = operation.tries
        has_run = _has_run(tries[0], response)
        if response.succeeded:
            return replies.Owned(revision, has_run)
        found = [self._keys([one], each.name) for one, each in zip(list(response.responses)[1:], tries, strict=False)]
        mine = [key for each, keys in zip(tries, found, strict=True) for key in keys if key.token == each.token]
        if len(mine) == len(tries):
            return replies.Owned(max(key.create_revision for key in mine), has_run)
        if not is_at(response.responses[0].response_range.kvs, tries[0].epoch):
            return _moved_or_gone(response)
        return replies.EachTried(tuple(replies.Present(keys, revision, has_run) for keys in found))

    def _enqueued(self, operation: ops.Enqueue, response: Any, revision: int) -> replies.StoreReply:
        if response.succeeded:
            return replies.Queued(self._keys(response.responses[1:], operation.name), revision)
        return self._why_refused(operation, response, revision)

    def _promoted(self, operation: ops.Promote, response: Any, revision: int) -> replies.StoreReply:
        if response.succeeded:
            return replies.Owned(revision, _has_run(operation, response))
        return self._why_refused(operation, response, revision, operation.mod_revision)

    def _released(self, operation: ops.Release, response: Any, revision: int) -> replies.StoreReply:
        return replies.Released() if response.succeeded else replies.NotHeld()

    def _why_refused(
        self,
        operation: Write,
        response: Any,
        revision: int,
        unchanged_at: int | None = None,
    ) -> replies.Present | replies.EpochMoved | replies.SessionGone:
        """What the failure branch saw. The epoch is the reason only if our key is as the operation expected it."""
        session = response.responses[0].response_range.kvs
        keys = self._keys(response.responses[1:], operation.name)
        mine = find_key(keys, operation.token)
        as_expected = mine is None if unchanged_at is None else mine is not None and mine.mod_revision == unchanged_at
        if not session or (as_expected and not is_at(session, operation.epoch)):
            return _moved_or_gone(response)
        return replies.Present(keys, revision)

    def _keys(self, responses: Iterable[Any], name: str) -> tuple[Key, ...]:
        """The keys under the name that some reads in one transaction found, each once."""
        start = self._layout.name_start(name)
        found = {kv.key: kv for response in responses for kv in response.response_range.kvs if kv.key.startswith(start)}
        return keys_in(found.values(), start)


def _put(key: bytes, operation: Write) -> Fields:
    return put(key, encode_record(operation.record), operation.lease)


def _created(start: bytes, result: int, revision: int) -> Fields:
    """Compare: all keys that begin with ``start`` were created before or after this revision."""
    compare = {"target": Compare.CREATE, "result": result, "create_revision": revision}
    return {"key": start, "range_end": end_of(start), **compare}


def _mine_or_all(
    operation: ops.TryAcquire, keys: tuple[Key, ...], revision: int, has_run: bool | None = None
) -> replies.Owned | replies.Present:
    """What a refused try-lock saw: its own key, if an earlier try of the same token put it.

    Who puts a key creates it. If it was rewritten since, that was somebody else, whose write isn't ours to undo.
    """
    mine = find_key(keys, operation.token)
    if mine is None:
        return replies.Present(keys, revision, has_run)
    return replies.Owned(mine.create_revision, has_run)


def _has_run(operation: ops.TryAcquire | ops.Promote, response: Any) -> bool | None:
    return bool(response.responses[-1].response_range.kvs) if operation.record.asks_if_done else None


def _moved_or_gone(response: Any) -> replies.EpochMoved | replies.SessionGone:
    session = response.responses[0].response_range.kvs
    return replies.EpochMoved(session[0].mod_revision) if session else replies.SessionGone()
