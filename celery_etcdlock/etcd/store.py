"""The lock store on etcd: each operation of the protocol as one transaction.

Keys, all under the app's prefix::

    {prefix}v1/{name}/{token}     a place under a lock's name: owners first, by create_revision; on its session's lease
    {prefix}session/{lease}       a session's own key; its mod_revision is the session's epoch
    {prefix}let-go/{lease}/{token}  somebody asks this session to let go of that key; on the session's lease
    {prefix}replaced/{task id}    a mark that this queued task was replaced by a newer one; on the newer one's lease

Names are escaped (``core.names``), so that no name's range holds another's keys.

A transaction that takes a place compares the session's epoch, so a request that arrives late, after the session was
fenced, does nothing. When a comparison fails, the same transaction reads what decides why: the session's key and all
keys under the name, in one view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from celery_etcdlock.core.names import escape_name
from celery_etcdlock.core.operations import (
    Asked,
    AskToLetGo,
    AwaitChange,
    Changed,
    CheckKeys,
    Done,
    EachTried,
    Enqueue,
    EpochMoved,
    FenceSession,
    GrantLease,
    KeepAlive,
    KeptAlive,
    KeysSeen,
    LeaseGranted,
    Look,
    LookForMark,
    MarkSeen,
    NotHeld,
    Owned,
    Present,
    Promote,
    Queued,
    Release,
    Released,
    RevokeLease,
    SessionFenced,
    SessionGone,
    StoreOperation,
    StoreReply,
    TryAcquire,
    TryAll,
    TryEach,
)
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import decode_record, encode_record
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.errors import DeadlinePassed, EtcdStatusError, LeaseExists, LeaseNotFound

__all__ = ["EtcdStore", "Transport"]

#: Keys checked in one transaction; etcd allows 128 operations by default, and comparisons count alike.
KEYS_PER_CHECK = 100

Compare = messages.Compare
RequestOp = messages.RequestOp


class Transport(Protocol):
    """The seam to etcd: gRPC calls as bytes. ``client.EtcdClient`` and ``grpcio.GrpcTransport`` have it."""

    def call(self, path: str, request: bytes, timeout_seconds: float, *, repeatable: bool = False) -> bytes: ...

    def stream(self, path: str, request: bytes, timeout_seconds: float) -> AbstractContextManager[Iterator[bytes]]: ...

    def close(self) -> None: ...


class EtcdStore:
    """See the module. Safe for use from many threads, as far as ``transport`` is."""

    def __init__(self, transport: Transport, prefix: str) -> None:
        self._transport = transport
        self._locks = f"{prefix}v1/".encode()
        self._sessions = f"{prefix}session/".encode()
        self._let_go = f"{prefix}let-go/".encode()
        self._marks = f"{prefix}replaced/".encode()
        self._handlers: dict[type[Any], Callable[[Any, float], StoreReply]] = {
            GrantLease: self._grant_lease,
            FenceSession: self._fence_session,
            KeepAlive: self._keep_alive,
            CheckKeys: self._check_keys,
            RevokeLease: self._revoke_lease,
            TryAcquire: self._try_acquire,
            Enqueue: self._enqueue,
            Promote: self._promote,
            TryEach: self._try_each,
            TryAll: self._try_all,
            LookForMark: self._look_for_mark,
            Look: self._look,
            AwaitChange: self._await_change,
            Release: self._release,
            AskToLetGo: self._ask_to_let_go,
        }

    def perform(self, operation: StoreOperation, timeout_seconds: float) -> StoreReply:
        try:
            return self._handlers[type(operation)](operation, timeout_seconds)
        except LeaseNotFound:
            return Done() if isinstance(operation, RevokeLease) else SessionGone()

    def close(self) -> None:
        self._transport.close()

    # --- keys -------------------------------------------------------------------------------------------------

    def _session_key(self, lease: int) -> bytes:
        return self._sessions + f"{lease:x}".encode()

    def _asked_start(self, lease: int) -> bytes:
        return self._let_go + f"{lease:x}/".encode()

    def _name_start(self, name: str) -> bytes:
        return self._locks + escape_name(name).encode() + b"/"

    def _key(self, name: str, token: str) -> bytes:
        return self._name_start(name) + token.encode()

    @staticmethod
    def _end(start: bytes) -> bytes:
        """The end of the range of all keys that begin with ``start``, which ends in a slash."""
        return start[:-1] + b"0"

    # --- sessions ---------------------------------------------------------------------------------------------

    def _grant_lease(self, operation: GrantLease, timeout_seconds: float) -> StoreReply:
        request = messages.LeaseGrantRequest(ID=operation.lease, TTL=operation.ttl_seconds)
        try:
            reply = self._call("Lease/LeaseGrant", request, messages.LeaseGrantResponse, timeout_seconds, True)
        except LeaseExists:
            # By an earlier, unanswered request of ours: the id is random. Its TTL is no less than asked for.
            return LeaseGranted(operation.ttl_seconds)
        return LeaseGranted(reply.TTL)

    def _fence_session(self, operation: FenceSession, timeout_seconds: float) -> StoreReply:
        request = messages.PutRequest(key=self._session_key(operation.lease), lease=operation.lease)
        reply = self._call("KV/Put", request, messages.PutResponse, timeout_seconds, True)
        return SessionFenced(reply.header.revision)

    def _keep_alive(self, operation: KeepAlive, timeout_seconds: float) -> StoreReply:
        request = messages.LeaseKeepAliveRequest(ID=operation.lease)
        reply = self._call("Lease/LeaseKeepAlive", request, messages.LeaseKeepAliveResponse, timeout_seconds, True)
        # etcd has no error for an expired lease here: its TTL is zero or absent.
        return KeptAlive(reply.TTL, reply.header.raft_term) if reply.TTL > 0 else SessionGone()

    def _check_keys(self, operation: CheckKeys, timeout_seconds: float) -> StoreReply:
        asked_start = self._asked_start(operation.lease)
        asked: tuple[tuple[str, str], ...] = ()
        terms: set[int] = set()
        missing: set[str] = set()
        # Once at least: the session's own key is checked even where none is held.
        for start in range(0, max(len(operation.keys), 1), KEYS_PER_CHECK):
            some = operation.keys[start : start + KEYS_PER_CHECK]
            session_key = self._session_key(operation.lease)
            keys = [self._key(held.name, held.token) for held in some]
            request = messages.TxnRequest(
                compare=[
                    Compare(key=session_key, target=Compare.CREATE, result=Compare.GREATER, create_revision=0),
                    *(_unchanged(key, held.mod_revision) for key, held in zip(keys, some, strict=True)),
                ],
                # A transaction without any read would not be linearizable.
                success=[_range(asked_start, self._end(asked_start))],
                failure=[
                    _range(asked_start, self._end(asked_start)),
                    *(_range(key, keys_only=True) for key in (session_key, *keys)),
                ],
            )
            reply = self._txn(request, timeout_seconds, repeatable=True)
            terms.add(reply.header.raft_term)
            asking, *rest = [response.response_range.kvs for response in reply.responses]
            asked = tuple((_token(kv, asked_start), kv.value.decode("utf-8", "replace")) for kv in asking)
            if reply.succeeded:
                continue
            session, *found = rest
            if not session:
                return SessionGone()
            missing.update(
                held.token
                for held, kvs in zip(some, found, strict=True)
                if not kvs or kvs[0].mod_revision != held.mod_revision
            )
        return KeysSeen(terms.pop() if len(terms) == 1 else 0, frozenset(missing), asked)

    def _revoke_lease(self, operation: RevokeLease, timeout_seconds: float) -> StoreReply:
        request = messages.LeaseRevokeRequest(ID=operation.lease)
        self._call("Lease/LeaseRevoke", request, messages.LeaseRevokeResponse, timeout_seconds, True)
        return Done()

    # --- places under a name ----------------------------------------------------------------------------------

    def _try_acquire(self, operation: TryAcquire, timeout_seconds: float) -> StoreReply:
        start = self._name_start(operation.name)
        session_key = self._session_key(operation.lease)
        reply = self._txn(
            messages.TxnRequest(
                compare=[
                    _unchanged(session_key, operation.epoch),
                    self._name_is_as_seen(operation),
                ],
                success=[self._put(operation)],
                failure=[_range(session_key, keys_only=True), _range(start, self._end(start))],
            ),
            timeout_seconds,
        )
        if reply.succeeded:
            return Owned(reply.header.revision)
        refused = self._why_refused(reply, operation, start)
        if isinstance(refused, Present):
            mine = next((key for key in refused.keys if key.token == operation.token), None)
            if mine is not None:
                return Owned(mine.mod_revision)
        return refused

    def _name_is_as_seen(self, operation: TryAcquire) -> Any:
        """No key has been created under the name since the caller looked."""
        start = self._name_start(operation.name)
        return Compare(
            key=start,
            range_end=self._end(start),
            target=Compare.CREATE,
            result=Compare.LESS,
            create_revision=operation.seen_revision + 1,
        )

    def _try_each(self, operation: TryEach, timeout_seconds: float) -> StoreReply:
        tries = operation.tries
        session_key = self._session_key(tries[0].lease)
        starts = [self._name_start(each.name) for each in tries]
        request = messages.TxnRequest(
            compare=[_unchanged(session_key, tries[0].epoch)],
            success=[
                RequestOp(
                    request_txn=messages.TxnRequest(
                        compare=[self._name_is_as_seen(each)],
                        success=[self._put(each)],
                        failure=[_range(start, self._end(start))],
                    )
                )
                for each, start in zip(tries, starts, strict=True)
            ],
            failure=[_range(session_key, keys_only=True)],
        )
        reply = self._txn(request, timeout_seconds)
        if not reply.succeeded:
            return self._moved_or_gone(reply)
        revision = reply.header.revision
        outcomes: list[Owned | Present] = []
        for each, start, response in zip(tries, starts, reply.responses, strict=True):
            nested = response.response_txn
            if nested.succeeded:
                outcomes.append(Owned(revision))
                continue
            keys = _keys(nested.responses[0].response_range.kvs, start)
            mine = next((key for key in keys if key.token == each.token), None)
            outcomes.append(Present(keys, revision) if mine is None else Owned(mine.mod_revision))
        return EachTried(tuple(outcomes))

    def _try_all(self, operation: TryAll, timeout_seconds: float) -> StoreReply:
        tries = operation.tries
        session_key = self._session_key(tries[0].lease)
        starts = [self._name_start(each.name) for each in tries]
        request = messages.TxnRequest(
            compare=[_unchanged(session_key, tries[0].epoch), *(self._name_is_as_seen(each) for each in tries)],
            success=[self._put(each) for each in tries],
            failure=[
                _range(session_key, keys_only=True),
                *(_range(start, self._end(start)) for start in starts),
            ],
        )
        reply = self._txn(request, timeout_seconds)
        if reply.succeeded:
            return Owned(reply.header.revision)
        found = [
            _keys(response.response_range.kvs, start)
            for response, start in zip(list(reply.responses)[1:], starts, strict=True)
        ]
        mine = [key for each, keys in zip(tries, found, strict=True) for key in keys if key.token == each.token]
        if len(mine) == len(tries):
            return Owned(max(key.mod_revision for key in mine))
        session = reply.responses[0].response_range.kvs
        if not session or session[0].mod_revision != tries[0].epoch:
            return self._moved_or_gone(reply)
        return EachTried(tuple(Present(keys, reply.header.revision) for keys in found))

    @staticmethod
    def _moved_or_gone(reply: Any) -> EpochMoved | SessionGone:
        session = reply.responses[0].response_range.kvs
        return EpochMoved(session[0].mod_revision) if session else SessionGone()

    def _look_for_mark(self, operation: LookForMark, timeout_seconds: float) -> StoreReply:
        request = messages.RangeRequest(key=self._mark(operation.task_id), keys_only=True)
        reply = self._call("KV/Range", request, messages.RangeResponse, timeout_seconds, True)
        return MarkSeen(bool(reply.kvs))

    def _mark(self, task_id: str) -> bytes:
        return self._marks + escape_name(task_id).encode()

    def _enqueue(self, operation: Enqueue, timeout_seconds: float) -> StoreReply:
        start = self._name_start(operation.name)
        session_key = self._session_key(operation.lease)
        reply = self._txn(
            messages.TxnRequest(
                compare=[
                    _unchanged(session_key, operation.epoch),
                    _unchanged(self._key(operation.name, operation.token), 0),
                ],
                success=[self._put(operation), _range(start, self._end(start))],
                failure=[_range(session_key, keys_only=True), _range(start, self._end(start))],
            ),
            timeout_seconds,
        )
        if reply.succeeded:
            kvs = reply.responses[1].response_range.kvs
            return Queued(_keys(kvs, start), reply.header.revision)
        return self._why_refused(reply, operation, start)

    def _promote(self, operation: Promote, timeout_seconds: float) -> StoreReply:
        start = self._name_start(operation.name)
        session_key = self._session_key(operation.lease)
        compare = [
            _unchanged(session_key, operation.epoch),
            _unchanged(self._key(operation.name, operation.token), operation.mod_revision),
        ]
        if operation.alone:
            compare.append(
                Compare(
                    key=start,
                    range_end=self._end(start),
                    target=Compare.CREATE,
                    result=Compare.GREATER,
                    create_revision=operation.create_revision - 1,
                )
            )
        success = [self._put(operation)]
        if operation.replaces is not None:
            mark = messages.PutRequest(key=self._mark(operation.replaces), lease=operation.lease)
            success.append(RequestOp(request_put=mark))
        reply = self._txn(
            messages.TxnRequest(
                compare=compare,
                success=success,
                failure=[_range(session_key, keys_only=True), _range(start, self._end(start))],
            ),
            timeout_seconds,
        )
        if reply.succeeded:
            return Owned(reply.header.revision)
        return self._why_refused(reply, operation, start, operation.mod_revision)

    def _why_refused(
        self, reply: Any, operation: TryAcquire | Enqueue | Promote, start: bytes, unchanged_at: int | None = None
    ) -> Present | EpochMoved | SessionGone:
        """What the failure branch saw. The epoch is the reason only if our key is as the operation expected it."""
        session, places = (response.response_range.kvs for response in reply.responses)
        if not session:
            return SessionGone()
        keys = _keys(places, start)
        mine = next((key for key in keys if key.token == operation.token), None)
        as_expected = mine is None if unchanged_at is None else mine is not None and mine.mod_revision == unchanged_at
        if as_expected and session[0].mod_revision != operation.epoch:
            return EpochMoved(session[0].mod_revision)
        return Present(keys, reply.header.revision)

    def _look(self, operation: Look, timeout_seconds: float) -> StoreReply:
        start = self._name_start(operation.name)
        request = messages.RangeRequest(key=start, range_end=self._end(start))
        reply = self._call("KV/Range", request, messages.RangeResponse, timeout_seconds, True)
        return Present(_keys(reply.kvs, start), reply.header.revision)

    def _release(self, operation: Release, timeout_seconds: float) -> StoreReply:
        key = self._key(operation.name, operation.token)
        reply = self._txn(
            messages.TxnRequest(
                compare=[_unchanged(key, operation.mod_revision)],
                success=[RequestOp(request_delete_range=messages.DeleteRangeRequest(key=key))],
            ),
            timeout_seconds,
        )
        return Released() if reply.succeeded else NotHeld()

    def _ask_to_let_go(self, operation: AskToLetGo, timeout_seconds: float) -> StoreReply:
        key = self._key(operation.name, operation.token)
        found = self._call("KV/Range", messages.RangeRequest(key=key), messages.RangeResponse, timeout_seconds, True)
        if not found.kvs or not found.kvs[0].lease:
            return NotHeld()
        (kv,) = found.kvs
        ask = messages.PutRequest(
            key=self._asked_start(kv.lease) + operation.token.encode(), value=operation.by.encode(), lease=kv.lease
        )
        request = messages.TxnRequest(compare=[_unchanged(key, kv.mod_revision)], success=[RequestOp(request_put=ask)])
        return Asked() if self._txn(request, timeout_seconds).succeeded else NotHeld()

    def _await_change(self, operation: AwaitChange, timeout_seconds: float) -> StoreReply:
        create = messages.WatchCreateRequest(start_revision=operation.after_revision + 1)
        if operation.token is None:
            create.key = self._name_start(operation.name)
            create.range_end = self._end(create.key)
            create.filters.append(messages.WatchCreateRequest.NOPUT)
        else:
            create.key = self._key(operation.name, operation.token)
        request = messages.WatchRequest(create_request=create).SerializeToString()
        try:
            with self._transport.stream("/etcdserverpb.Watch/Watch", request, timeout_seconds) as replies:
                for reply in replies:
                    response = messages.WatchResponse.FromString(reply)
                    # Cancelled: compacted, or no leader. Whoever is woken looks again.
                    if response.events or response.canceled:
                        break
        except DeadlinePassed:
            pass
        except EtcdStatusError as error:
            # The server counts the same deadline as we do, and may be first to say so.
            if "deadline exceeded" not in error.details:
                raise
        return Changed()

    # --- calls ------------------------------------------------------------------------------------------------

    def _put(self, operation: TryAcquire | Enqueue | Promote) -> Any:
        key = self._key(operation.name, operation.token)
        value = encode_record(operation.record)
        return RequestOp(request_put=messages.PutRequest(key=key, value=value, lease=operation.lease))

    def _txn(self, request: Any, timeout_seconds: float, *, repeatable: bool = False) -> Any:
        return self._call("KV/Txn", request, messages.TxnResponse, timeout_seconds, repeatable)

    def _call(self, method: str, request: Any, reply: Any, timeout_seconds: float, repeatable: bool) -> Any:
        path = f"/etcdserverpb.{method}"
        answer = self._transport.call(path, request.SerializeToString(), timeout_seconds, repeatable=repeatable)
        return reply.FromString(answer)


def _unchanged(key: bytes, mod_revision: int) -> Any:
    """The key is there as it was written at this revision, or isn't there at all (0)."""
    return Compare(key=key, target=Compare.MOD, result=Compare.EQUAL, mod_revision=mod_revision)


def _range(key: bytes, range_end: bytes = b"", *, keys_only: bool = False) -> Any:
    return RequestOp(request_range=messages.RangeRequest(key=key, range_end=range_end, keys_only=keys_only))


def _token(kv: Any, start: bytes) -> str:
    token: str = kv.key[len(start) :].decode("utf-8", "replace")
    return token


def _keys(kvs: Iterable[Any], start: bytes) -> tuple[Key, ...]:
    found = [
        Key(
            _token(kv, start),
            kv.create_revision,
            kv.mod_revision,
            decode_record(kv.value),
        )
        for kv in kvs
    ]
    return tuple(sorted(found, key=lambda key: key.create_revision))
