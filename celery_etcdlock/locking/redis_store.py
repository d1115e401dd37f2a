"""A lock store on one Redis, for those who have Redis and not yet an etcd.

Each operation is one call of ``redis_store.lua``, so it is atomic; leases are keys with an expiry; one counter orders
all writes and is the fencing token. It passes the same contract as the store on etcd.

*What it doesn't promise.* Redis answers before a write is on a replica or on disk. After a failover, or a restart
without ``appendfsync always``, a lock that was granted may be gone, and somebody else gets it while its holder still
believes in it; the counter may go back, and fencing tokens with it. So use it where two at once are a nuisance, not a
disaster.

A change is published. The end of a lease isn't, so a waiter also looks when the first lease would end.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from functools import partial
from importlib.resources import files
from itertools import chain
from typing import Any

from redis import ConnectionPool, Redis, exceptions

from celery_etcdlock.core import operations as ops
from celery_etcdlock.core import replies
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, decode_record, encode_record
from celery_etcdlock.errors import LockUnavailable

#: How long a change may go unseen when its message was lost, in seconds.
LOOK_SECONDS = 1.0
#: The same for a wait that somebody may stop, which takes up to so long.
STOP_SECONDS = 0.25


class RedisStore:
    """See the module. ``pool`` is a ``redis.ConnectionPool``; safe for use from many threads."""

    def __init__(self, pool: ConnectionPool, prefix: str) -> None:
        self._pool = pool
        self._prefix = prefix
        self._script = (files("celery_etcdlock.locking") / "redis_store.lua").read_text()
        self._digest: str | None = None
        # redis-py below 5.3 wants a command's name, which it doesn't use; later ones warn of it.
        name = inspect.signature(pool.get_connection).parameters["command_name"]
        names = ["EVALSHA"] if name.default is inspect.Parameter.empty else []
        self._get_connection: Callable[[], Any] = partial(pool.get_connection, *names)

    def perform(self, operation: ops.StoreOperation, timeout_seconds: float) -> replies.StoreReply:
        if isinstance(operation, ops.AwaitChange):
            return self._await_change(operation, timeout_seconds)
        kind, *parts = self._run(_arguments(operation), timeout_seconds)
        reply: replies.StoreReply = _REPLIES[kind](*parts)
        return reply

    def close(self) -> None:
        self._pool.disconnect()

    def _await_change(self, operation: ops.AwaitChange, timeout_seconds: float) -> replies.Changed:
        ends_at = time.monotonic() + timeout_seconds
        look_seconds = LOOK_SECONDS if operation.stop is None else STOP_SECONDS
        client: Any = Redis(connection_pool=self._pool)
        subscription: Any = None
        try:
            subscription = client.pubsub(ignore_subscribe_messages=True)
            subscription.subscribe(f"{self._prefix}changed/{operation.name}")
            while True:
                left = ends_at - time.monotonic()
                if left <= 0 or (operation.stop is not None and operation.stop.stopped):
                    return replies.Changed()
                question = ["changed", operation.name, operation.after_revision, operation.token or ""]
                changed, lease_ms = self._run(question, left)
                if changed:
                    return replies.Changed()
                subscription.get_message(timeout=max(0.001, min(left, lease_ms / 1000 + 0.001, look_seconds)))
        except exceptions.RedisError as error:
            raise unavailable(error) from error
        finally:
            if subscription is not None:
                subscription.close()

    def _run(self, arguments: Sequence[Any], timeout_seconds: float) -> list[Any]:
        """Run the script once. Only what surely wasn't sent is said not to have been applied."""
        ends_at = time.monotonic() + timeout_seconds
        sent = False
        connection: Any = None
        try:
            connection = self._get_connection()
            if self._digest is None:
                self._digest = self._call(connection, ends_at, "SCRIPT", "LOAD", self._script).decode()
            while True:
                sent = True
                try:
                    reply: list[Any] = self._call(
                        connection, ends_at, "EVALSHA", self._digest, 0, self._prefix, *arguments
                    )
                    return reply
                except exceptions.NoScriptError:  # a restarted Redis
                    sent = False
                    self._call(connection, ends_at, "SCRIPT", "LOAD", self._script)
        except BaseException as error:
            if connection is not None:
                connection.disconnect()  # a late answer must not be taken for the next call's
            if isinstance(error, exceptions.RedisError | OSError):
                raise unavailable(error, maybe_applied=sent) from error
            raise
        finally:
            if connection is not None:
                self._pool.release(connection)

    @staticmethod
    def _call(connection: Any, ends_at: float, *command: Any) -> Any:
        connection.send_command(*command)
        if not connection.can_read(timeout=max(0.0, ends_at - time.monotonic())):
            raise TimeoutError("Redis gave no answer in time")
        return connection.read_response()


def unavailable(error: Exception, *, maybe_applied: bool = False) -> LockUnavailable:
    permanent = isinstance(error, exceptions.AuthenticationError | exceptions.NoPermissionError)
    # A script's own error comes before it has written anything, but who knows: doubt costs one look.
    return LockUnavailable(f"Redis: {error}", maybe_applied=maybe_applied, permanent=permanent)


def _arguments(operation: ops.StoreOperation) -> list[Any]:
    command = _COMMANDS.get(type(operation))
    if command is not None:
        return [command, *(getattr(operation, field.name) for field in fields(operation))]
    match operation:
        case ops.GrantLease(lease=lease, ttl_seconds=ttl_seconds):
            return ["grant", lease, int(ttl_seconds * 1000)]
        case ops.CheckKeys(lease=lease, keys=keys):
            return ["check", lease, *(part for key in keys for part in astuple(key))]
        case ops.Release(name=name, token=token, mod_revision=mod_revision, done=done):
            mark = [] if done is None else [_done(done.delivery), done.lease]
            return ["release", name, token, mod_revision, *mark]
        case ops.SaveStates(guard=guard, name=name, writes=writes):
            # Of each its key, as of which revision, whether to write, and what.
            parts = [(one.key, one.seen_revision, int(one.value is not None), one.value or b"") for one in writes]
            return ["save", name, *astuple(guard), *chain(*parts)]
        case ops.LookForMark(task_id=task_id):
            return ["replaced", f"replaced/{task_id}"]
        case ops.Unmark(task_id=task_id):
            return ["unmark", f"replaced/{task_id}"]
        case ops.LookForDone(delivery=delivery):
            return ["ended", _done(delivery)]
        case ops.MarkDone(lease=lease, delivery=delivery):
            return ["mark", lease, _done(delivery)]
        case ops.TryAcquire() as each:
            return ["try", each.lease, each.epoch, *_try(each), _asked(each)]
        case ops.Enqueue() as put:
            return ["enqueue", *_put(put)]
        case ops.Promote() as put:
            return ["promote", *_put(put), put.mod_revision, int(put.alone), put.replaces or "", _asked(put)]
        case ops.TryEach(tries=tries) | ops.TryAll(tries=tries):
            name = "try each" if isinstance(operation, ops.TryEach) else "try all"
            return [name, tries[0].lease, tries[0].epoch, *chain(*map(_try, tries)), _asked(tries[0])]
    raise TypeError(f"{operation!r} isn't one script")


#: Those whose arguments are their fields.
_COMMANDS: dict[type[Any], str] = {
    ops.RevokeLease: "revoke",
    ops.FenceSession: "fence",
    ops.KeepAlive: "keep alive",
    ops.AskAge: "age",
    ops.Look: "look",
    ops.AskToRelease: "ask",
    ops.LoadStates: "load",
}


def _put(operation: ops.Enqueue | ops.Promote) -> tuple[Any, ...]:
    return operation.lease, operation.epoch, operation.name, operation.token, encode_record(operation.record)


def _try(operation: ops.TryAcquire) -> tuple[Any, ...]:
    return operation.name, operation.token, encode_record(operation.record), operation.seen_revision


def _asked(operation: ops.TryAcquire | ops.Promote) -> str:
    """The mark by which the run that asks would be known to have come to its end; empty where it doesn't ask."""
    return _done(operation.record.delivery.run) if operation.record.asks_if_done else ""


def _states(parts: list[Any]) -> tuple[replies.State, ...]:
    return tuple(replies.State(key.decode(), value, revision) for key, revision, value in parts)


def _done(delivery: Delivery) -> str:
    counts = f"{delivery.retries}/{delivery.replacements}/{delivery.comebacks}"
    return f"done/{delivery.task_id}/{counts}" + ("" if delivery.call is None else f"/{delivery.call}")


def _keys_seen(missing: list[list[bytes]], asked: list[bytes]) -> replies.KeysSeen:
    gone = frozenset(ops.HeldKey(name.decode(), token.decode(), int(mod)) for name, token, mod in missing)
    texts = (text.decode("utf-8", "replace") for text in asked)
    asks = ((token, *text.partition(":")) for token, text in zip(texts, texts, strict=True))
    return replies.KeysSeen(1, gone, tuple(replies.ReleaseAsked(token, by, int(at)) for token, at, _, by in asks))


#: What the script answers. ``has_run`` is -1 where it wasn't asked.
_REPLIES: dict[bytes, Callable[..., Any]] = {
    b"granted": replies.LeaseGranted,
    b"replaced": lambda seen: replies.MarkSeen(bool(seen)),
    b"ended": lambda seen: replies.DoneSeen(bool(seen)),
    b"owned": lambda revision, has_run=-1: replies.Owned(revision, _known(has_run)),
    b"present": lambda keys, revision, has_run=-1: replies.Present(_keys(keys), revision, _known(has_run)),
    b"seen": _keys_seen,
    b"fenced": lambda revision: replies.SessionFenced(revision, term=1),
    # Both times are whole milliseconds, so the difference may be one too many.
    b"age": lambda ms: replies.LeaseAge((ms - 1) / 1000, term=1),
    b"kept": lambda ttl_seconds: replies.KeptAlive(ttl_seconds, term=1),
    b"queued": lambda keys, revision: replies.Queued(_keys(keys), revision),
    b"each": lambda each, has_run: replies.EachTried(tuple(_REPLIES[kind](*parts, has_run) for kind, *parts in each)),
    b"saved": replies.StatesSaved,
    b"refused": lambda states: replies.StatesRefused(_states(states)),
    b"states": lambda states: replies.StatesSeen(_states(states)),
    b"moved": replies.EpochMoved,
    b"gone": replies.SessionGone,
    b"done": replies.Done,
    b"released": replies.Released,
    b"not held": replies.NotHeld,
    b"asked": replies.Asked,
    b"unknown": replies.LeaseUnknown,
}


def _known(has_run: int) -> bool | None:
    return None if has_run < 0 else bool(has_run)


def _keys(stored: list[list[Any]]) -> tuple[Key, ...]:
    return tuple(
        Key(token.decode(), create, mod, decode_record(record), int(lease))
        for token, create, mod, record, lease in stored
    )
