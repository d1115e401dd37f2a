"""The lock store on etcd: each operation of the protocol as one call.

Where things lie is in ``key_layout``; the operations that take or give up a place under a lock's name are
transactions, in ``lock_transactions``; here are leases, sessions and watches, and the sending of all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Protocol

from celery_etcdlock.core import operations as ops
from celery_etcdlock.core import replies
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.cluster_identity import ClusterIdentity
from celery_etcdlock.etcd.errors import (
    DeadlinePassed,
    EtcdError,
    LeaseExists,
    LeaseNotFound,
    NoSpace,
    TooManyOperations,
)
from celery_etcdlock.etcd.key_layout import (
    Compare,
    Fields,
    Layout,
    end_of,
    is_at,
    keys_in,
    put,
    read,
    token_in,
    unchanged,
    watch_request,
)
from celery_etcdlock.etcd.lock_transactions import LockTransactions
from celery_etcdlock.etcd.recent_conflicts import RecentConflicts, rehearsal
from celery_etcdlock.etcd.state_transactions import States

#: Operations in one transaction, of the 128 that etcd's ``--max-txn-ops`` allows by default.
MOST_TOGETHER = 64
#: Keys checked in one transaction; etcd allows 128 operations by default, and comparisons count alike.
KEYS_PER_CHECK = 100


class Stream(Protocol):
    """The answers of a call with many."""

    def __iter__(self) -> Iterator[bytes]: ...

    def cancel(self) -> None:
        """From any thread: end it. Whoever waits for an answer gets an error."""


class Transport(Protocol):
    """The seam to etcd: gRPC calls as bytes. ``EtcdClient`` and ``GrpcTransport`` have it."""

    def call(self, path: str, request: bytes, timeout_seconds: float, *, repeatable: bool = False) -> bytes: ...

    def stream(self, path: str, request: bytes, timeout_seconds: float) -> AbstractContextManager[Stream]: ...

    def close(self) -> None: ...


class EtcdStore:
    """See the module. Safe for use from many threads, as far as ``transport`` is."""

    def __init__(self, transport: Transport, prefix: str, identity: ClusterIdentity | None = None) -> None:
        self.most_together = MOST_TOGETHER
        self._identity = identity
        self._recent_conflicts = RecentConflicts()
        self._transport = transport
        self._layout = Layout(prefix)
        self._places = LockTransactions(self._layout)
        self._states = States(self._layout)

    def perform(self, operation: ops.StoreOperation, timeout_seconds: float) -> replies.StoreReply:
        layout = self._layout
        try:
            match operation:
                case ops.TryAcquire():
                    return self._try(operation, timeout_seconds)
                case ops.Release() | ops.Enqueue() | ops.Promote() | ops.TryEach() | ops.TryAll():
                    reply = self._transact(self._places.request(operation), timeout_seconds)
                    return self._places.reply(operation, reply, reply.header.revision)
                case ops.Look(name=name):
                    start = layout.name_start(name)
                    reply = self._read(timeout_seconds, key=start, range_end=end_of(start))
                    return replies.Present(keys_in(reply.kvs, start), reply.header.revision)
                case ops.AwaitChange():
                    return self._await_change(operation, timeout_seconds)
                case ops.AskToRelease(name=name, token=token, mod_revision=mod_revision, by=by):
                    return self.ask_holder(layout.key(name, token), mod_revision, by, timeout_seconds)
                case ops.GrantLease(lease=lease, ttl_seconds=granted):
                    # It exists by an earlier, unanswered request of ours: the id is random. Its TTL is no less.
                    with suppress(LeaseExists):
                        granted = self._ask(messages.LeaseGrantRequest(ID=lease, TTL=granted), timeout_seconds).TTL
                    return replies.LeaseGranted(granted)
                case ops.FenceSession(lease=lease):
                    reply = self._ask(messages.PutRequest(key=layout.session_key(lease), lease=lease), timeout_seconds)
                    return replies.SessionFenced(reply.header.revision, reply.header.raft_term)
                case ops.KeepAlive(lease=lease):
                    reply = self._ask(messages.LeaseKeepAliveRequest(ID=lease), timeout_seconds)
                    if reply.TTL <= 0:  # or absent: etcd has no error for an expired lease here
                        return replies.SessionGone()
                    return replies.KeptAlive(reply.TTL, reply.header.raft_term)
                case ops.CheckKeys():
                    return self._check_keys(operation, timeout_seconds)
                case ops.RevokeLease(lease=lease):
                    self._ask(messages.LeaseRevokeRequest(ID=lease), timeout_seconds)
                    return replies.Done()
                case ops.AskAge(lease=lease):
                    reply = self._ask(messages.LeaseTimeToLiveRequest(ID=lease), timeout_seconds)
                    if not reply.grantedTTL:
                        return replies.LeaseUnknown()
                    # The leader cuts what is left to whole seconds: the age that it implies is up to 1 s too high.
                    return replies.LeaseAge(float(reply.grantedTTL - reply.TTL - 1), reply.header.raft_term)
                case ops.LookForMark(task_id=task_id):
                    return replies.MarkSeen(self._is_there(layout.mark(task_id), timeout_seconds))
                case ops.Unmark(task_id=task_id):
                    self._ask(messages.DeleteRangeRequest(key=layout.mark(task_id)), timeout_seconds)
                    return replies.Done()
                case ops.MarkDone(lease=lease, delivery=delivery):
                    self._ask(messages.PutRequest(key=layout.done_mark(delivery), lease=lease), timeout_seconds)
                    return replies.Done()
                case ops.LookForDone(delivery=delivery):
                    return replies.DoneSeen(self._is_there(layout.done_mark(delivery), timeout_seconds))
                case ops.SaveStates():
                    reply = self._transact(self._states.request(operation), timeout_seconds)
                    return self._states.reply(operation, reply)
                case ops.LoadStates():
                    until = time.monotonic() + timeout_seconds
                    return self._states.load(
                        operation, lambda **fields: self._read(max(0.001, until - time.monotonic()), **fields)
                    )
        except LeaseNotFound:
            return replies.Done() if isinstance(operation, ops.RevokeLease) else replies.SessionGone()

    def perform_together(
        self, operations: Sequence[ops.PlaceOperation], timeout_seconds: float
    ) -> list[replies.StoreReply]:
        """Several operations on different lock names, as one transaction of nested ones."""
        if len({operation.name for operation in operations}) < len(operations):
            raise ValueError("a lock name occurs twice in one transaction (rule 4)")
        nested = [{"request_txn": self._places.request(operation)} for operation in operations]
        try:
            reply = self._transact({"success": nested}, timeout_seconds)
        except TooManyOperations:
            self.most_together = max(1, len(operations) // 2)
            raise
        revision = reply.header.revision
        return [
            self._places.reply(operation, one.response_txn, revision)
            for operation, one in zip(operations, reply.responses, strict=True)
        ]

    def close(self) -> None:
        self._transport.close()

    # --- the keys of a session ----------------------------------------------------------------------------------

    def _check_keys(self, operation: ops.CheckKeys, timeout_seconds: float) -> replies.StoreReply:
        try:
            return self._check_keys_at_once(operation, timeout_seconds)
        except NoSpace:
            # An etcd that is full refuses even transactions that write nothing, and goes on answering plain reads.
            return self._check_keys_one_by_one(operation, timeout_seconds)

    def _check_keys_one_by_one(self, operation: ops.CheckKeys, timeout_seconds: float) -> replies.StoreReply:
        session = self._read(timeout_seconds, key=self._layout.session_key(operation.lease), keys_only=True)
        if not session.kvs:
            return replies.SessionGone()
        keys = [self._layout.key(held.name, held.token) for held in operation.keys]
        found = [self._read(timeout_seconds, key=key, keys_only=True) for key in keys]
        terms = {reply.header.raft_term for reply in (session, *found)}
        return _keys_seen(terms, _missing(operation.keys, [reply.kvs for reply in found]))

    def _check_keys_at_once(self, operation: ops.CheckKeys, timeout_seconds: float) -> replies.StoreReply:
        session_key = self._layout.session_key(operation.lease)
        session_lives = {"key": session_key, "target": Compare.CREATE, "result": Compare.GREATER, "create_revision": 0}
        asked_start = self._layout.asked_start(operation.lease)
        read_asks = read(asked_start, end_of(asked_start))
        asking: Any = ()
        terms: set[int] = set()
        missing: set[ops.HeldKey] = set()
        # Once at least: the session's own key is checked even where none is held.
        for start in range(0, max(len(operation.keys), 1), KEYS_PER_CHECK):
            some = operation.keys[start : start + KEYS_PER_CHECK]
            keys = [self._layout.key(held.name, held.token) for held in some]
            as_held = [unchanged(key, held.mod_revision) for key, held in zip(keys, some, strict=True)]
            request = messages.TxnRequest(
                compare=[session_lives, *as_held],
                success=[read_asks],  # a transaction without any read would not be linearizable
                failure=[read_asks, *(read(key, keys_only=True) for key in (session_key, *keys))],
            )
            reply = self._ask(request, timeout_seconds)
            terms.add(reply.header.raft_term)
            asking, *rest = [response.response_range.kvs for response in reply.responses]
            if not reply.succeeded:
                session, *found = rest
                if not session:
                    return replies.SessionGone()
                missing |= _missing(some, found)
        asked = [
            replies.ReleaseAsked(token_in(kv, asked_start), kv.value.decode("utf-8", "replace"), kv.mod_revision)
            for kv in asking
        ]
        return _keys_seen(terms, missing, asked)

    # --- places under a name ----------------------------------------------------------------------------------

    def _try(self, operation: ops.TryAcquire, timeout_seconds: float) -> replies.StoreReply:
        recent_conflicts = self._recent_conflicts
        request, until = self._places.request(operation), time.monotonic() + timeout_seconds
        if recent_conflicts.lately(operation.name):
            seen = read(self._layout.session_key(operation.lease), keys_only=True)
            try:
                reply = self._transact(rehearsal(request, seen), timeout_seconds, repeatable=True)
            except EtcdError as error:
                error.maybe_applied = False
                raise
            if reply.succeeded:
                reply = self._transact(request, max(0.001, until - time.monotonic()))
        else:
            reply = self._transact(request, timeout_seconds)
        recent_conflicts.note(operation.name, refused=not reply.succeeded)
        return self._places.reply(operation, reply, reply.header.revision)

    def ask_holder(self, key: bytes, mod_revision: int, by: str, timeout_seconds: float) -> replies.StoreReply:
        """``AskToRelease``, for a key whose name may not be known whole."""
        found = self._read(timeout_seconds, key=key)
        if not found.kvs or not found.kvs[0].lease:
            return replies.NotHeld()
        (kv,) = found.kvs
        asked_key = self._layout.asked_start(kv.lease) + key.rpartition(b"/")[2]
        ask = put(asked_key, by.encode(), kv.lease)
        reply = self._transact({"compare": [unchanged(key, mod_revision)], "success": [ask]}, timeout_seconds)
        return replies.Asked() if reply.succeeded else replies.NotHeld()

    # --- waiting --------------------------------------------------------------------------------------------------

    def _await_change(self, operation: ops.AwaitChange, timeout_seconds: float) -> replies.StoreReply:
        stop, after = operation.stop, operation.after_revision
        if operation.token is None:
            request = watch_request(self._layout.name_start(operation.name), after, deletions_only=True)
        else:
            request = watch_request(self._layout.key(operation.name, operation.token), after)
        try:
            with (
                self._transport.stream(messages.WATCH, request, timeout_seconds) as answers,
                nullcontext() if stop is None else stop.waking(answers.cancel),
            ):
                for answer in answers:
                    response = messages.decoded(messages.WatchResponse, answer)
                    # Cancelled: compacted, or no leader. Whoever is woken looks again.
                    if response.events or response.canceled:
                        break
        except DeadlinePassed:
            pass
        except EtcdError:
            if stop is None or not stop.stopped:
                raise
        return replies.Changed()

    # --- calls ------------------------------------------------------------------------------------------------

    def _is_there(self, key: bytes, timeout_seconds: float) -> bool:
        return bool(self._read(timeout_seconds, key=key, keys_only=True).kvs)

    def _read(self, timeout_seconds: float, **fields: Any) -> Any:
        return self._ask(messages.RangeRequest(**fields), timeout_seconds)

    def _transact(self, fields: Fields, timeout_seconds: float, *, repeatable: bool = False) -> Any:
        return self._ask(messages.TxnRequest(**fields), timeout_seconds, repeatable=repeatable)

    def _ask(self, request: Any, timeout_seconds: float, *, repeatable: bool = True) -> Any:
        identity = self._identity
        newest_before = 0 if identity is None else identity.revision
        reply = messages.ask(self._transport, request, timeout_seconds, repeatable=repeatable)
        if identity is not None:
            # Answers about leases come from one member's own view.
            identity.check(reply.header, newest_before, linearizable=not request.DESCRIPTOR.name.startswith("Lease"))
        return reply


def _missing(held_keys: Sequence[ops.HeldKey], found: Sequence[Any]) -> set[ops.HeldKey]:
    """Those that aren't there any more as they were written."""
    return {held for held, kvs in zip(held_keys, found, strict=True) if not is_at(kvs, held.mod_revision)}


def _keys_seen(
    terms: set[int], missing: set[ops.HeldKey], asked: Sequence[replies.ReleaseAsked] = ()
) -> replies.KeysSeen:
    return replies.KeysSeen(terms.pop() if len(terms) == 1 else 0, frozenset(missing), tuple(asked))
