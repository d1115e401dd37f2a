"""A model of etcd that speaks the real bytes at the transport's seam, so that the production store runs on it.

Its whole state is one immutable, hashable value, and every request is a pure function from state to state: an explorer
may keep any number of states and go on from each. What isn't modelled raises ``NotImplementedError`` instead of
guessing.
``test_model_etcd.py`` compares it with a real server.

What matters for locks is modelled as in etcd's source and as seen on 3.4 and 3.5: the comparisons of nested
transactions
all see the state before the whole transaction; a comparison over an empty range sees a key whose numbers are all 0;
all writes of a transaction share a revision; a put on a lease that is gone fails the whole transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.errors import DeadlinePassed, StatusCode, status_error

__all__ = ["INITIAL", "EtcdState", "Kv", "Lease", "ModelEtcd", "answer", "expire", "stale_keep_alive", "watch"]

Compare = messages.Compare


class Kv(NamedTuple):
    key: bytes
    value: bytes
    create: int
    mod: int
    version: int
    lease: int


class Lease(NamedTuple):
    ident: int
    ttl: int
    ends_at: float


class Event(NamedTuple):
    revision: int
    key: bytes
    deleted: bool


class EtcdState(NamedTuple):
    """``kvs`` are sorted by key. ``now`` is the server's clock, in seconds; only the explorer moves it."""

    revision: int
    term: int
    now: float
    kvs: tuple[Kv, ...]
    leases: tuple[Lease, ...]
    events: tuple[Event, ...]


INITIAL = EtcdState(revision=1, term=2, now=0.0, kvs=(), leases=(), events=())


# --- requests -----------------------------------------------------------------------------------------------------


def answer(state: EtcdState, path: str, request: bytes) -> tuple[EtcdState, bytes]:
    """The state after a unary request, and the bytes of its answer. Raises the client's typed errors."""
    request_class, handler = _HANDLERS[path.rpartition(".")[2]]
    work = _Work(state)
    reply = handler(work, request_class.FromString(request))
    after = work.state()
    reply.header.revision = after.revision
    reply.header.raft_term = after.term
    return after, reply.SerializeToString()


def expire(state: EtcdState, ident: int) -> EtcdState:
    """The state after the server has removed a lease, with all keys on it."""
    work = _Work(state)
    _revoke(work, ident)
    return work.state()


def lead_anew(state: EtcdState) -> EtcdState:
    """The state after a change of leader, which gives every lease its whole TTL again."""
    leases = tuple(lease._replace(ends_at=state.now + lease.ttl) for lease in state.leases)
    return state._replace(term=state.term + 1, leases=leases)


def stale_keep_alive(state: EtcdState, request: bytes) -> bytes:
    """What a leader that doesn't know yet that it was replaced answers: success, in its own term, without effect."""
    ident = messages.LeaseKeepAliveRequest.FromString(request).ID
    lease = next((lease for lease in state.leases if lease.ident == ident), None)
    reply = messages.LeaseKeepAliveResponse(ID=ident, TTL=lease.ttl if lease else 30)
    reply.header.revision = state.revision
    reply.header.raft_term = state.term - 1
    return bytes(reply.SerializeToString())


def watch(state: EtcdState, request: bytes) -> bytes | None:
    """The first answer with events to a watch, or ``None`` if there is none yet."""
    create = messages.WatchRequest.FromString(request).create_request
    response = messages.WatchResponse()
    for event in state.events:
        if event.revision < create.start_revision or not _within(event.key, create.key, create.range_end):
            continue
        if (create.NODELETE if event.deleted else create.NOPUT) in create.filters:
            continue
        added = response.events.add(type=1 if event.deleted else 0)
        added.kv.key, added.kv.mod_revision = event.key, event.revision
    response.header.revision = state.revision
    return bytes(response.SerializeToString()) if response.events else None


class _Work:
    """One request at work on a copy of the state."""

    def __init__(self, before: EtcdState) -> None:
        self.before = before
        self.kvs = {kv.key: kv for kv in before.kvs}
        self.leases = {lease.ident: lease for lease in before.leases}
        self.new_events: list[Event] = []

    @property
    def revision(self) -> int:
        """That of the writes of this request."""
        return self.before.revision + 1

    def state(self) -> EtcdState:
        return self.before._replace(
            revision=self.revision if self.new_events else self.before.revision,
            kvs=tuple(sorted(self.kvs.values())),
            leases=tuple(sorted(self.leases.values())),
            events=self.before.events + tuple(self.new_events),
        )

    def within(self, key: bytes, range_end: bytes) -> list[Kv]:
        return sorted(kv for kv in self.kvs.values() if _within(kv.key, key, range_end))

    def delete(self, key: bytes) -> None:
        del self.kvs[key]
        self.new_events.append(Event(self.revision, key, True))


def _within(key: bytes, start: bytes, end: bytes) -> bool:
    if not end:
        return key == start
    return key >= start and (end == b"\0" or key < end)


# --- keys -----------------------------------------------------------------------------------------------------------


def _range(work: _Work, request: Any) -> Any:
    if not request.key:
        raise _error(StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided")
    if request.revision or request.min_mod_revision or request.max_mod_revision or request.min_create_revision:
        raise NotImplementedError("only the newest revision, filtered by nothing but the greatest create_revision")
    if request.sort_order and request.sort_target != messages.RangeRequest.CREATE:
        raise NotImplementedError("sorted by create_revision only")
    found = work.within(request.key, request.range_end)
    reply = messages.RangeResponse(count=len(found))
    if request.count_only:
        return reply
    if request.max_create_revision:
        found = [kv for kv in found if kv.create <= request.max_create_revision]
    if request.sort_order:
        newest_first = request.sort_order == messages.RangeRequest.DESCEND
        found.sort(key=lambda kv: kv.create, reverse=newest_first)
    kept = found[: request.limit] if request.limit else found
    reply.more = len(kept) < len(found)
    for kv in kept:
        reply.kvs.add(
            key=kv.key,
            value=b"" if request.keys_only else kv.value,
            create_revision=kv.create,
            mod_revision=kv.mod,
            version=kv.version,
            lease=kv.lease,
        )
    return reply


def _put(work: _Work, request: Any) -> Any:
    if not request.key:
        raise _error(StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided")
    if request.ignore_value or request.ignore_lease or request.prev_kv:
        raise NotImplementedError("only plain puts")
    _check_lease(work, request)
    old = work.kvs.get(request.key)
    create, version = (old.create, old.version + 1) if old else (work.revision, 1)
    work.kvs[request.key] = Kv(request.key, request.value, create, work.revision, version, request.lease)
    work.new_events.append(Event(work.revision, request.key, False))
    return messages.PutResponse()


def _check_lease(work: _Work, put: Any) -> None:
    if put.lease and put.lease not in work.leases:
        raise _error(StatusCode.NOT_FOUND, "etcdserver: requested lease not found")


def _delete_range(work: _Work, request: Any) -> Any:
    if request.prev_kv:
        raise NotImplementedError("prev_kv")
    doomed = work.within(request.key, request.range_end)
    for kv in doomed:
        work.delete(kv.key)
    return messages.DeleteRangeResponse(deleted=len(doomed))


# --- transactions -------------------------------------------------------------------------------------------------


def _txn(work: _Work, request: Any) -> Any:
    _check_intervals(request.success)
    _check_intervals(request.failure)
    path = _decide(work, request)
    _check_puts(work, request, iter(path))
    return _apply(work, request, iter(path))


def _decide(work: _Work, request: Any) -> list[bool]:
    """Which branch each transaction takes, in the order in which they are met: decided before anything is written."""
    succeeded = all(_holds(work, compare) for compare in request.compare)
    path = [succeeded]
    for operation in request.success if succeeded else request.failure:
        if operation.WhichOneof("request") == "request_txn":
            path += _decide(work, operation.request_txn)
    return path


def _holds(work: _Work, compare: Any) -> bool:
    found = work.within(compare.key, compare.range_end)
    if not found:
        # No number can stand for a missing value, so comparing one always fails.
        return compare.target != Compare.VALUE and _matches(compare, Kv(b"", b"", 0, 0, 0, 0))
    return all(_matches(compare, kv) for kv in found)


def _matches(compare: Any, kv: Kv) -> bool:
    actual: Any
    wanted: Any
    actual, wanted = {
        Compare.VERSION: lambda: (kv.version, compare.version),
        Compare.CREATE: lambda: (kv.create, compare.create_revision),
        Compare.MOD: lambda: (kv.mod, compare.mod_revision),
        Compare.VALUE: lambda: (kv.value, compare.value),
        Compare.LEASE: lambda: (kv.lease, compare.lease),
    }[compare.target]()
    return {
        Compare.EQUAL: actual == wanted,
        Compare.NOT_EQUAL: actual != wanted,
        Compare.GREATER: actual > wanted,
        Compare.LESS: actual < wanted,
    }[compare.result]


def _check_puts(work: _Work, request: Any, path: Iterator[bool]) -> None:
    for operation in request.success if next(path) else request.failure:
        kind = operation.WhichOneof("request")
        if kind == "request_txn":
            _check_puts(work, operation.request_txn, path)
        elif kind == "request_put":
            _check_lease(work, operation.request_put)


def _apply(work: _Work, request: Any, path: Iterator[bool]) -> Any:
    succeeded = next(path)
    reply = messages.TxnResponse(succeeded=succeeded)
    for operation in request.success if succeeded else request.failure:
        kind = operation.WhichOneof("request")
        response = reply.responses.add()
        if kind == "request_txn":
            nested = _apply(work, operation.request_txn, path)
            # Nested answers carry the revision too: a store that nests needs it.
            response.response_txn.CopyFrom(nested)
        else:
            handler = {"request_range": _range, "request_put": _put, "request_delete_range": _delete_range}[kind]
            getattr(response, kind.replace("request", "response")).CopyFrom(handler(work, getattr(operation, kind)))
    return reply


def _check_intervals(operations: Any) -> tuple[set[bytes], list[tuple[bytes, bytes]]]:
    """Refuse what etcd refuses: a key that is put twice, or put and deleted, by one transaction."""
    deleted = [
        (operation.request_delete_range.key, operation.request_delete_range.range_end)
        for operation in operations
        if operation.WhichOneof("request") == "request_delete_range"
    ]
    put: set[bytes] = set()

    def add(key: bytes, allowed: set[bytes]) -> None:
        if (key in put and key not in allowed) or any(_within(key, *interval) for interval in deleted):
            raise _error(StatusCode.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")
        put.add(key)

    for operation in operations:
        if operation.WhichOneof("request") == "request_txn":
            then, then_deleted = _check_intervals(operation.request_txn.success)
            otherwise, otherwise_deleted = _check_intervals(operation.request_txn.failure)
            for key in then:
                add(key, set())
            for key in otherwise:
                add(key, then)
            deleted += then_deleted + otherwise_deleted
    for operation in operations:
        if operation.WhichOneof("request") == "request_put":
            add(operation.request_put.key, set())
    return put, deleted


# --- leases -------------------------------------------------------------------------------------------------------


def _grant(work: _Work, request: Any) -> Any:
    if request.ID in work.leases:
        raise _error(StatusCode.FAILED_PRECONDITION, "etcdserver: lease already exists")
    if not request.ID:
        raise NotImplementedError("ids are chosen by the client")
    work.leases[request.ID] = Lease(request.ID, request.TTL, work.before.now + request.TTL)
    return messages.LeaseGrantResponse(ID=request.ID, TTL=request.TTL)


def _revoke(work: _Work, ident: int) -> None:
    del work.leases[ident]
    for kv in [kv for kv in work.kvs.values() if kv.lease == ident]:
        work.delete(kv.key)


def _revoke_lease(work: _Work, request: Any) -> Any:
    if request.ID not in work.leases:
        raise _error(StatusCode.NOT_FOUND, "etcdserver: requested lease not found")
    _revoke(work, request.ID)
    return messages.LeaseRevokeResponse()


def _keep_alive(work: _Work, request: Any) -> Any:
    lease = work.leases.get(request.ID)
    # A lease whose time is over but which the server hasn't removed yet can't be renewed either.
    if lease is None or work.before.now >= lease.ends_at:
        return messages.LeaseKeepAliveResponse(ID=request.ID)
    work.leases[request.ID] = lease._replace(ends_at=work.before.now + lease.ttl)
    return messages.LeaseKeepAliveResponse(ID=request.ID, TTL=lease.ttl)


def _time_to_live(work: _Work, request: Any) -> Any:
    lease = work.leases.get(request.ID)
    if lease is None:
        return messages.LeaseTimeToLiveResponse(ID=request.ID, TTL=-1)
    keys = [kv.key for kv in work.before.kvs if kv.lease == request.ID] if request.keys else []
    left = int(lease.ends_at - work.before.now)
    return messages.LeaseTimeToLiveResponse(ID=request.ID, TTL=left, grantedTTL=lease.ttl, keys=keys)


def _error(code: StatusCode, details: str) -> Exception:
    return status_error(code, details, "model")


_HANDLERS: dict[str, tuple[Any, Callable[[_Work, Any], Any]]] = {
    "KV/Range": (messages.RangeRequest, _range),
    "KV/Put": (messages.PutRequest, _put),
    "KV/DeleteRange": (messages.DeleteRangeRequest, _delete_range),
    "KV/Txn": (messages.TxnRequest, _txn),
    "Lease/LeaseGrant": (messages.LeaseGrantRequest, _grant),
    "Lease/LeaseRevoke": (messages.LeaseRevokeRequest, _revoke_lease),
    "Lease/LeaseKeepAlive": (messages.LeaseKeepAliveRequest, _keep_alive),
    "Lease/LeaseTimeToLive": (messages.LeaseTimeToLiveRequest, _time_to_live),
}


# --- the transport --------------------------------------------------------------------------------------------------


class ModelEtcd:
    """The transport's seam to one model server, for tests that play a schedule by hand.

    ``lose_replies`` answers so many calls are applied for without an answer; ``delay`` so many are kept back,
    unanswered,
    and applied when the test says ``apply_late``. ``before_call`` sees each path before it is applied.
    """

    def __init__(self, state: EtcdState = INITIAL) -> None:
        self.state = state
        self.lose_replies = 0
        self.delay = 0
        self.late: list[tuple[str, bytes]] = []
        self.calls: list[str] = []
        self.before_call: Callable[[str], None] = lambda path: None

    def call(self, path: str, request: bytes, timeout_seconds: float, *, repeatable: bool = False) -> bytes:
        self.calls.append(path)
        self.before_call(path)
        if self.delay:
            self.delay -= 1
            self.late.append((path, request))
            raise DeadlinePassed("the model keeps the request back", maybe_applied=True)
        self.state, reply = answer(self.state, path, request)
        if self.lose_replies:
            self.lose_replies -= 1
            raise DeadlinePassed("the model lost the reply", maybe_applied=True)
        return reply

    @contextmanager
    def stream(self, path: str, request: bytes, timeout_seconds: float) -> Iterator[Iterator[bytes]]:
        self.calls.append(path)
        self.before_call(path)
        reply = watch(self.state, request)
        if reply is None:
            raise DeadlinePassed("no event in the model", maybe_applied=True)
        yield iter([reply])

    def close(self) -> None:
        pass

    # --- the test's hand ------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let the server's clock go on; leases that are over are removed."""
        self.state = self.state._replace(now=self.state.now + seconds)
        for lease in self.state.leases:
            if self.state.now >= lease.ends_at:
                self.state = expire(self.state, lease.ident)

    def apply_late(self) -> None:
        """Apply what was kept back, as a server that wakes up does: nobody waits for the answers."""
        late, self.late = self.late, []
        for path, request in late:
            try:
                self.state, _ = answer(self.state, path, request)
            except Exception:  # refused: that's an answer too
                continue

    def put(self, key: bytes, value: bytes = b"", lease: int = 0) -> None:
        request = messages.PutRequest(key=key, value=value, lease=lease).SerializeToString()
        self.state, _ = answer(self.state, "KV/Put", request)

    def delete(self, key: bytes) -> None:
        request = messages.DeleteRangeRequest(key=key).SerializeToString()
        self.state, _ = answer(self.state, "KV/DeleteRange", request)

    def keys(self, start: bytes = b"") -> list[bytes]:
        return [kv.key for kv in self.state.kvs if kv.key.startswith(start)]
