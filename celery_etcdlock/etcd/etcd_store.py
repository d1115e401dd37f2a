"""The lock store on etcd: each operation of the protocol as one call.

Where things lie is in ``key_layout``; the operations that take or give up a place under a lock's name are
transactions, in ``lock_transactions``; here are leases, sessions and watches, and the sending of all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from celery_etcdlock.core import operations as ops
from celery_etcdlock.core import replies as store_replies
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
from celery_etcdlock.etcd.lock_transactions import LockTransactions, Transaction
from celery_etcdlock.etcd.recent_conflicts import RecentConflicts, rehearsal
from celery_etcdlock.etcd.state_transactions import States

#: Operations in one transaction, of the 128 that etcd's ``--max-txn-ops`` allows by default.
MOST_TOGETHER = 64
#: Keys checked in one transaction; etcd allows 128 operations by default, and comparisons count alike.
KEYS_PER_CHECK = 100

LEASES = "/etcdserverpb.Lease/"


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

    def __init__(
        self,
        transport: Transport,
        prefix: str,
        places_class: type[LockTransactions] = LockTransactions,
        identity: ClusterIdentity | None = None,
        *,
        asks_first: bool = True,
    ) -> None:
        self._identity = identity
        self._recent_conflicts = RecentConflicts() if asks_first else None
        self._transport = transport
        self.most_together = MOST_TOGETHER
        self._layout = Layout(prefix)
        self._places = places_class(self._layout)
        self._states = States(self._layout)
        #: Those that aren't the one transaction that ``LockTransactions`` makes of them.
        self._handlers: dict[type[Any], Callable[[Any, float], store_replies.StoreReply]] = {
            ops.GrantLease: self._grant_lease,
            ops.FenceSession: self._fence_session,
            ops.KeepAlive: self._keep_alive,
            ops.CheckKeys: self._check_keys,
            ops.RevokeLease: self._revoke_lease,
            ops.TryAcquire: self._try,
            ops.AskAge: self._ask_age,
            ops.Look: self._look,
            ops.LookForMark: self._look_for_mark,
            ops.Unmark: self._unmark,
            ops.MarkDone: self._mark_done,
            ops.LookForDone: self._look_for_done,
            ops.AwaitChange: self._await_change,
            ops.AskToRelease: self._ask_to_release,
            ops.SaveStates: self._save_states,
            ops.LoadStates: self._load_states,
        }

    def perform(self, operation: ops.StoreOperation, timeout_seconds: float) -> store_replies.StoreReply:
        try:
            return self._handlers.get(type(operation), self._place)(operation, timeout_seconds)
        except LeaseNotFound:
            return store_replies.Done() if isinstance(operation, ops.RevokeLease) else store_replies.SessionGone()

    def perform_together(
        self, operations: Sequence[ops.PlaceOperation], timeout_seconds: float
    ) -> list[store_replies.StoreReply]:
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

    # --- sessions ---------------------------------------------------------------------------------------------

    def _grant_lease(self, operation: ops.GrantLease, timeout_seconds: float) -> store_replies.StoreReply:
        request = messages.LeaseGrantRequest(ID=operation.lease, TTL=operation.ttl_seconds)
        try:
            reply = self._ask(request, timeout_seconds)
        except LeaseExists:
            # By an earlier, unanswered request of ours: the id is random. Its TTL is no less than asked for.
            return store_replies.LeaseGranted(operation.ttl_seconds)
        return store_replies.LeaseGranted(reply.TTL)

    def _fence_session(self, operation: ops.FenceSession, timeout_seconds: float) -> store_replies.StoreReply:
        request = messages.PutRequest(key=self._layout.session_key(operation.lease), lease=operation.lease)
        reply = self._ask(request, timeout_seconds)
        return store_replies.SessionFenced(reply.header.revision, reply.header.raft_term)

    def _keep_alive(self, operation: ops.KeepAlive, timeout_seconds: float) -> store_replies.StoreReply:
        request = messages.LeaseKeepAliveRequest(ID=operation.lease)
        reply = self._ask(request, timeout_seconds)
        # etcd has no error for an expired lease here: its TTL is zero or absent.
        if reply.TTL <= 0:
            return store_replies.SessionGone()
        return store_replies.KeptAlive(reply.TTL, reply.header.raft_term)

    def _check_keys(self, operation: ops.CheckKeys, timeout_seconds: float) -> store_replies.StoreReply:
        try:
            return self._check_keys_at_once(operation, timeout_seconds)
        except NoSpace:
            # An etcd that is full refuses even transactions that write nothing, and goes on answering plain reads.
            return self._check_keys_one_by_one(operation, timeout_seconds)

    def _check_keys_one_by_one(self, operation: ops.CheckKeys, timeout_seconds: float) -> store_replies.StoreReply:
        session = self._read(timeout_seconds, key=self._layout.session_key(operation.lease), keys_only=True)
        if not session.kvs:
            return store_replies.SessionGone()
        keys = [self._layout.key(held.name, held.token) for held in operation.keys]
        found = [self._read(timeout_seconds, key=key, keys_only=True) for key in keys]
        terms = {reply.header.raft_term for reply in (session, *found)}
        return _keys_seen(terms, _missing(operation.keys, [reply.kvs for reply in found]))

    def _check_keys_at_once(self, operation: ops.CheckKeys, timeout_seconds: float) -> store_replies.StoreReply:
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
                    return store_replies.SessionGone()
                missing |= _missing(some, found)
        asked = [
            store_replies.ReleaseAsked(token_in(kv, asked_start), kv.value.decode("utf-8", "replace"), kv.mod_revision)
            for kv in asking
        ]
        return _keys_seen(terms, missing, asked)

    def _revoke_lease(self, operation: ops.RevokeLease, timeout_seconds: float) -> store_replies.StoreReply:
        request = messages.LeaseRevokeRequest(ID=operation.lease)
        self._ask(request, timeout_seconds)
        return store_replies.Done()

    def _ask_age(self, operation: ops.AskAge, timeout_seconds: float) -> store_replies.StoreReply:
        request = messages.LeaseTimeToLiveRequest(ID=operation.lease)
        reply = self._ask(request, timeout_seconds)
        if not reply.grantedTTL:
            return store_replies.LeaseUnknown()
        # The leader cuts what is left to whole seconds, so the age that it implies is up to one second too high.
        return store_replies.LeaseAge(float(reply.grantedTTL - reply.TTL - 1), reply.header.raft_term)

    # --- places under a name ----------------------------------------------------------------------------------

    def _place(self, operation: Transaction, timeout_seconds: float) -> store_replies.StoreReply:
        reply = self._transact(self._places.request(operation), timeout_seconds)
        return self._places.reply(operation, reply, reply.header.revision)

    def _try(self, operation: ops.TryAcquire, timeout_seconds: float) -> store_replies.StoreReply:
        recent_conflicts = self._recent_conflicts
        if recent_conflicts is None:
            return self._place(operation, timeout_seconds)
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

    def _look(self, operation: ops.Look, timeout_seconds: float) -> store_replies.StoreReply:
        start = self._layout.name_start(operation.name)
        reply = self._read(timeout_seconds, key=start, range_end=end_of(start))
        return store_replies.Present(keys_in(reply.kvs, start), reply.header.revision)

    def _look_for_mark(self, operation: ops.LookForMark, timeout_seconds: float) -> store_replies.StoreReply:
        reply = self._read(timeout_seconds, key=self._layout.mark(operation.task_id), keys_only=True)
        return store_replies.MarkSeen(bool(reply.kvs))

    def _unmark(self, operation: ops.Unmark, timeout_seconds: float) -> store_replies.StoreReply:
        request = messages.DeleteRangeRequest(key=self._layout.mark(operation.task_id))
        self._ask(request, timeout_seconds)
        return store_replies.Done()

    def _mark_done(self, operation: ops.MarkDone, timeout_seconds: float) -> store_replies.StoreReply:
        request = messages.PutRequest(key=self._layout.done_mark(operation.delivery), lease=operation.lease)
        self._ask(request, timeout_seconds)
        return store_replies.Done()

    def _look_for_done(self, operation: ops.LookForDone, timeout_seconds: float) -> store_replies.StoreReply:
        reply = self._read(timeout_seconds, key=self._layout.done_mark(operation.delivery), keys_only=True)
        return store_replies.DoneSeen(bool(reply.kvs))

    def _ask_to_release(self, operation: ops.AskToRelease, timeout_seconds: float) -> store_replies.StoreReply:
        key = self._layout.key(operation.name, operation.token)
        return self.ask_holder(key, operation.mod_revision, operation.by, timeout_seconds)

    def ask_holder(self, key: bytes, mod_revision: int, by: str, timeout_seconds: float) -> store_replies.StoreReply:
        """``AskToRelease``, for a key whose name may not be known whole."""
        found = self._read(timeout_seconds, key=key)
        if not found.kvs or not found.kvs[0].lease:
            return store_replies.NotHeld()
        (kv,) = found.kvs
        asked_key = self._layout.asked_start(kv.lease) + key.rpartition(b"/")[2]
        ask = put(asked_key, by.encode(), kv.lease)
        reply = self._transact({"compare": [unchanged(key, mod_revision)], "success": [ask]}, timeout_seconds)
        return store_replies.Asked() if reply.succeeded else store_replies.NotHeld()

    # --- states that outlive their holder -----------------------------------------------------------------------

    def _save_states(self, operation: ops.SaveStates, timeout_seconds: float) -> store_replies.StoreReply:
        reply = self._transact(self._states.request(operation), timeout_seconds)
        return self._states.reply(operation, reply)

    def _load_states(self, operation: ops.LoadStates, timeout_seconds: float) -> store_replies.StoreReply:
        ends_at = time.monotonic() + timeout_seconds
        return self._states.load(
            operation, lambda **fields: self._read(max(0.001, ends_at - time.monotonic()), **fields)
        )

    # --- waiting --------------------------------------------------------------------------------------------------

    def _await_change(self, operation: ops.AwaitChange, timeout_seconds: float) -> store_replies.StoreReply:
        stop, after = operation.stop, operation.after_revision
        if operation.token is None:
            request = watch_request(self._layout.name_start(operation.name), after, deletions_only=True)
        else:
            request = watch_request(self._layout.key(operation.name, operation.token), after)
        try:
            with (
                self._transport.stream(messages.WATCH, request, timeout_seconds) as replies,
                nullcontext() if stop is None else stop.waking(replies.cancel),
            ):
                for reply in replies:
                    response = messages.decoded(messages.WatchResponse, reply)
                    # Cancelled: compacted, or no leader. Whoever is woken looks again.
                    if response.events or response.canceled:
                        break
        except DeadlinePassed:
            pass
        except EtcdError:
            if stop is None or not stop.stopped:
                raise
        return store_replies.Changed()

    # --- calls ------------------------------------------------------------------------------------------------

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
            path, _ = messages.call_for(request.__class__)
            identity.check(reply.header, newest_before, linearizable=not path.startswith(LEASES))
        return reply


def _missing(held_keys: Sequence[ops.HeldKey], found: Sequence[Any]) -> set[ops.HeldKey]:
    """Those that aren't there any more as they were written."""
    return {held for held, kvs in zip(held_keys, found, strict=True) if not is_at(kvs, held.mod_revision)}


def _keys_seen(
    terms: set[int], missing: set[ops.HeldKey], asked: Sequence[store_replies.ReleaseAsked] = ()
) -> store_replies.KeysSeen:
    return store_replies.KeysSeen(terms.pop() if len(terms) == 1 else 0, frozenset(missing), tuple(asked))
