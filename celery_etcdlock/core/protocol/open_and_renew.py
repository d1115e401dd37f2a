"""A session's life: open it, renew it, know when it is over.

``Open`` grants the lease under an id that we chose, then puts the session's key, whose revision is the first epoch.
Trust counts from before the grant was sent.

``Renew`` sends a keepalive and then reads, linearizably, the session's key and keys that we believe to own (the
driver chooses which: with thousands of them, some in each renewal).
Only both together extend the trust, and only under one leader's term: old servers report a renewal as
successful although the lease was revoked, and a stalled old leader may revoke a lease that the new one renews.
The new deadline counts from before the *keepalive* was sent. Keys that are missing are lost one by one: an
administrator may delete a key while its lease lives on (rule 9).

A renewal that fails ends nothing: the deadline does.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery_etcdlock.core import operations as ops
from celery_etcdlock.core import replies as store_replies
from celery_etcdlock.core.ownership import trust_deadline
from celery_etcdlock.core.protocol.machine import SESSION_GONE, Machine, SessionLost, Unavailable
from celery_etcdlock.errors import LockUnavailable

#: How often a renewal starts again because the leader changed under it, before it counts as failed.
MAX_TERM_CHANGES = 5


@dataclass(frozen=True, slots=True)
class Opened:
    """The session stands: its first epoch, the TTL that the server granted, and how long to trust it.

    Its lease is no older than since ``opened_at``; ``term`` is the leader's since when its age has been counted.
    """

    epoch: int
    ttl_seconds: int
    deadline: float
    opened_at: float
    term: int


@dataclass(frozen=True, slots=True)
class Renewed:
    """Trust the session until ``deadline``, but not the keys that are ``missing``; ``asked``: as in ``KeysSeen``."""

    deadline: float
    missing: frozenset[ops.HeldKey]
    asked: tuple[store_replies.ReleaseAsked, ...] = ()


@dataclass(kw_only=True, eq=False)
class Open(Machine["Opened | SessionLost | Unavailable"]):
    """Open a session. ``SessionLost``: choose another lease."""

    lease: int
    ttl_seconds: int

    def start(self, now: float) -> ops.Operation:
        # Repeats keep this time: any of them may be the one that was applied.
        self._sent_at = now
        self._step: ops.Operation = ops.GrantLease(self.lease, self.ttl_seconds)
        return self._step

    def _send(self, now: float) -> ops.Operation:
        return self._step

    def on(self, reply: store_replies.Reply, now: float) -> ops.Operation | Opened | SessionLost | Unavailable:
        match reply:
            case store_replies.LeaseGranted(ttl_seconds=ttl_seconds):
                self.ttl_seconds = ttl_seconds
                self._step = ops.FenceSession(self.lease)
            case store_replies.SessionFenced(epoch=epoch, term=term):
                deadline = trust_deadline(self._sent_at, self.ttl_seconds)
                if now >= deadline:
                    return SessionLost("opening it took longer than its lease lives")
                return Opened(epoch, self.ttl_seconds, deadline, self._sent_at, term)
            case store_replies.SessionGone():
                return SessionLost("its lease ended before it was used")
            case store_replies.Failed(error=error):
                return self._try_again(error, now)
        return self._step  # also when a Pause is over


@dataclass(kw_only=True, eq=False)
class Renew(Machine["Renewed | SessionLost | Unavailable"]):
    """Renew a session once. ``Unavailable``: try again."""

    lease: int
    keys: tuple[ops.HeldKey, ...]
    _sent_at = 0.0
    _ttl_seconds = 0
    _term = 0
    _term_changes = 0

    def _send(self, now: float) -> ops.Operation:
        self._sent_at = now
        return ops.KeepAlive(self.lease)

    def on(self, reply: store_replies.Reply, now: float) -> ops.Operation | Renewed | SessionLost | Unavailable:
        match reply:
            case store_replies.KeptAlive(ttl_seconds=ttl_seconds, term=term):
                self._ttl_seconds = ttl_seconds
                self._term = term
                return ops.CheckKeys(self.lease, self.keys)
            case store_replies.KeysSeen(term=term, missing=missing, asked=asked):
                if term == self._term:
                    return Renewed(trust_deadline(self._sent_at, self._ttl_seconds), missing, asked)
                self._term_changes += 1
                if self._term_changes >= MAX_TERM_CHANGES or now >= self.answer_by:
                    return Unavailable(LockUnavailable("the leader changed while the lease was renewed"))
                return self._send(now)
            case store_replies.SessionGone():
                return SESSION_GONE
            case store_replies.Failed(error=error):
                return Unavailable(error)
            case _:
                return self._send(now)
