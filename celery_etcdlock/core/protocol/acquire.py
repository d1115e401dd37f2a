"""Acquire: become owner of a lock, now or in turn, and be sure of the answer.

States::

    TRYING ------> owned | conflict                      one operation when nobody holds the lock
    QUEUEING ----> owned | WAITING                       with a time to wait: take a queue position at once
    WAITING -----> PROMOTING                             woken by a change, or by the clock
    PROMOTING ---> owned | WAITING | QUEUEING            looks at all that precede, never at its own key alone
    WITHDRAWING -> conflict                              the time to wait is over: delete our key
    RESOLVING ---> conflict | unavailable                an unanswered request must not take effect any more

Where keys are in the way that seem over, it asks about them first.

*Trust.* We own the lock only if the store said so in an operation that compared the session's epoch. A token that is
found under the name is ours and of one of our own unanswered requests: it is random and nobody else writes it.

*Failure.* An operation that may have been applied is repeated as it was until ``give_up_at``; the repeat finds the key
if the first one made it. After that the token is resolved (``resolve_doubt``) until ``deadline``; when even that gets
no answer, the outcome says that the token stays doubtful, and the session goes on resolving it. A success after an
unanswered try is doubtful too: the late one may put our key again when we have released it (rule 3).

*Keys whose time is over.* A key that nobody renews says until when it stands. Whoever is kept out by one that seems
over has the store say so (``core.expiry``), deletes it as it was read, and goes on; a waiter wakes up for it.

*Limits above one.* What the limit leaves is for others, not for a second run of one message: a copy, or a retry whose
predecessor hasn't released, is refused as if none were free. A try-lock first assumes that nobody is there; if fewer
than ``limit`` keys are seen, it tries again on the condition that no key has been created since. A waiter looks first
and promotes itself when fewer than ``limit`` keys precede: that stays true, so no further condition is needed (rules 2
and 5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from celery_etcdlock.core import operations as ops
from celery_etcdlock.core import replies as store_replies
from celery_etcdlock.core.expiry import Expiry
from celery_etcdlock.core.key_kinds import is_kept_out
from celery_etcdlock.core.ownership import Key, effective_limit, find_key, owns, preceding
from celery_etcdlock.core.protocol.machine import SESSION_GONE, KeyMachine, SessionLost, Unavailable, pause_before_try
from celery_etcdlock.core.protocol.resolve_doubt import Resolve, Resolved
from celery_etcdlock.errors import LockUnavailable


@dataclass(frozen=True, slots=True)
class Acquired:
    """We own the lock. ``fencing_token`` also guards the release.

    ``doubtful``: an earlier try went unanswered and may still arrive, which would put our key anew once it is
    released. So release by ``Resolve``, which fences first. ``has_run``: whether this run of this call has come to its
    end before; ``None`` where that isn't known.
    """

    fencing_token: int
    doubtful: bool = False
    has_run: bool | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Conflicted:
    """Others own the lock, and nothing of ours is left under its name. ``keys`` are theirs, owners first."""

    keys: tuple[Key, ...]
    has_run: bool | None = field(default=None, compare=False)


AcquireOutcome = Acquired | Conflicted | SessionLost | Unavailable


class State(Enum):
    TRYING = "trying"
    QUEUEING = "queueing"
    WAITING = "waiting"
    PROMOTING = "promoting"
    WITHDRAWING = "withdrawing"


@dataclass(kw_only=True, eq=False)
class Acquire(KeyMachine[AcquireOutcome]):
    """Acquire one lock for one token.

    ``deadline`` ends all of it but waiting, which ends at ``wait_until`` (``None``: don't wait). While waiting, each
    operation gets ``answer_seconds``, and an outage ends the wait only when the session or the time to wait is over.
    ``wall_offset`` is what the driver's clock lacks to the wall clock; ``None``: take no key to be over.
    """

    wait_until: float | None = None
    answer_seconds: float = 5.0
    wall_offset: float | None = None

    #: The key whose end is in question, and the reply that is dealt with once it isn't.
    _judged: Key | None = field(default=None, init=False)
    _put_off: store_replies.Queued | store_replies.Present | None = field(default=None, init=False)
    _asked_at = 0.0
    _seen_revision = 0
    _mine: Key | None = field(default=None, init=False)
    _others: tuple[Key, ...] = field(default=(), init=False)
    _resolve: Resolve | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._state = State.TRYING if self.wait_until is None else State.QUEUEING
        self._ends = Expiry(self.wall_offset)

    # --- events -------------------------------------------------------------------------------------------

    def on(self, reply: store_replies.Reply, now: float) -> ops.Operation | AcquireOutcome:
        if self._resolve is not None:
            step = self._resolve.on(reply, now)
            if isinstance(step, Resolved) and self._others:
                return Conflicted(self._others)
            if isinstance(step, Resolved | Unavailable):
                return self._unavailable(doubtful=isinstance(step, Unavailable))
            return step
        match reply:
            case store_replies.Owned(revision=revision, has_run=has_run):
                return Acquired(revision, self._doubtful, has_run)
            case store_replies.SessionGone():
                return SESSION_GONE
            case store_replies.EpochMoved(epoch=epoch):
                # Requests with the old epoch can't take effect any more, and none has: our key isn't there.
                self.epoch = epoch
                self._doubtful = False
                return self._send(now) if now < self.deadline or self._waits else self._fail(now)
            case store_replies.Queued(keys=keys, revision=revision):
                if owns(keys, self.token, self.record.limit):
                    return Acquired(revision, self._doubtful)
                return self._wait_behind(reply, now)
            case store_replies.Present():
                return self._on_present(reply, now)
            case store_replies.LeaseAge() | store_replies.LeaseUnknown():
                return self._on_age(reply, now)
            case store_replies.Failed(error=error):
                return self._on_failed(error, now)
            case store_replies.Released() | store_replies.NotHeld() if self._judged is not None:
                self._judged = None
                return self._send(now)
            case store_replies.Released():
                return Conflicted(self._others)
            case store_replies.NotHeld():
                # Not as we wrote it: deleted by somebody, or promoted by a request whose answer we never saw.
                return self._resolve_doubt(now)
            case store_replies.Changed():
                if self._state is State.WAITING:
                    self._state = State.PROMOTING
                    self._tries = 1
                return self._send(now)
            case _:
                raise TypeError(f"no operation of Acquire is answered with {reply!r}")

    def stop_waiting(self, now: float) -> None:
        if self.wait_until is not None:
            self.wait_until = min(self.wait_until, now)

    # --- what the replies mean ------------------------------------------------------------------------------

    @property
    def _waits(self) -> bool:
        return self._state in (State.WAITING, State.PROMOTING)

    def _on_present(self, reply: store_replies.Present, now: float) -> ops.Operation | AcquireOutcome:
        keys = reply.keys
        mine = find_key(keys, self.token)
        self._others = tuple(key for key in keys if key.token != self.token)
        if self._state is State.TRYING:
            limit = effective_limit(self.record.limit, keys)
            if len(keys) >= limit or is_kept_out(self.record.delivery, self._others):
                over = self._ends.first_over(keys, now)
                if over is not None and now < self.deadline:
                    return self._judge(over, reply, now)
                # Refused with our key absent: but an earlier try without an answer may still arrive.
                return Conflicted(self._others, reply.has_run) if not self._doubtful else self._resolve_doubt(now)
            if now >= self.deadline:
                return self._fail(now)
            self._seen_revision = reply.revision
            return self._send(now)
        if mine is None:
            return self._on_position_lost(now)
        was = self._mine
        if was is not None and mine.create_revision == was.create_revision and mine.mod_revision != was.mod_revision:
            # Only our own promotion rewrites our key, and it is refused unless we are next: an answer that got lost.
            # Created anew it is another position: deleted by somebody, and put again by our own late request.
            return Acquired(mine.mod_revision, self._doubtful)
        return self._wait_behind(reply, now, may_promote=True)

    def _wait_behind(
        self, reply: store_replies.Queued | store_replies.Present, now: float, *, may_promote: bool = False
    ) -> ops.Operation | AcquireOutcome:
        mine = next(key for key in reply.keys if key.token == self.token)
        self._mine = mine
        self._others = tuple(key for key in reply.keys if key.token != self.token)
        before = preceding(reply.keys, mine.create_revision)
        limit = effective_limit(self.record.limit, before)
        if may_promote and len(before) < limit:
            self._state = State.PROMOTING
            return self._promote(alone=limit == 1, now=now)
        if self.wait_until is not None and now >= self.wait_until:
            return self._withdraw(now)
        over = self._ends.first_over(before, now)
        if over is not None:
            self._state = State.PROMOTING  # our key is there, so an outage doesn't end the wait
            return self._judge(over, reply, now)
        self._state = State.WAITING
        wait_until = now if self.wait_until is None else self.wait_until
        self.answer_by = min([wait_until, *(self._ends.ask_at(key) for key in before)])
        # Only the next waiter needs to see every departure; the others need the one just before them.
        is_next = len(before) == limit
        return ops.AwaitChange(self.name, reply.revision, None if is_next else before[-1].token)

    def _judge(self, key: Key, reply: store_replies.Queued | store_replies.Present, now: float) -> ops.Operation:
        """Ask about a key that seems over; ``reply`` is dealt with when it stands all the same."""
        if self._waits:
            self.answer_by = now + self.answer_seconds
        self._judged, self._put_off, self._asked_at = key, reply, now
        return self._ends.question(self.name, key)

    def _on_age(
        self, age: store_replies.LeaseAge | store_replies.LeaseUnknown, now: float
    ) -> ops.Operation | AcquireOutcome:
        key, put_off = self._judged, self._put_off
        assert key is not None
        assert put_off is not None
        ends = self._ends.judged(key, age, self._asked_at, now)
        if ends is None:
            return ops.Release(self.name, key.token, key.mod_revision)
        self._ends = ends
        self._judged = self._put_off = None
        # A lease that isn't known may be gone by now, and the key with it.
        return self._send(now) if isinstance(age, store_replies.LeaseUnknown) else self.on(put_off, now)

    def _on_position_lost(self, now: float) -> ops.Operation | AcquireOutcome:
        """Somebody deleted our key in the queue while the session lives: take a new position."""
        if self.wait_until is not None and now >= self.wait_until and not self._doubtful:
            return Conflicted(self._others)
        self._mine = None
        self._state = State.QUEUEING
        self._tries = 1
        self._allow_answers(now)
        return self._send(now)

    def _on_failed(self, error: LockUnavailable, now: float) -> ops.Operation | AcquireOutcome:
        self._error = error
        judged, self._judged = self._judged, None
        # Only these two put a key; a late promotion or release finds its guard broken and does nothing.
        if error.maybe_applied and judged is None and self._state in (State.TRYING, State.QUEUEING):
            self._doubtful = True
        self._tries += 1
        if self._waits:
            if self.wait_until is not None and now >= self.wait_until:
                return self._withdraw(now)
        elif error.permanent or now >= self.give_up_at:
            return self._fail(now)
        pause = pause_before_try(self._tries)
        return pause if pause.seconds else self._send(now)

    # --- what to do next -------------------------------------------------------------------------------------

    def _send(self, now: float) -> ops.Operation:
        """The operation of the state we are in, for the first time or once more."""
        if self._waits:
            self.answer_by = now + self.answer_seconds
        match self._state:
            case State.TRYING:
                return ops.TryAcquire(self.lease, self.epoch, self.name, self.token, self.record, self._seen_revision)
            case State.QUEUEING:
                return ops.Enqueue(self.lease, self.epoch, self.name, self.token, self.record)
            case State.WITHDRAWING if self._mine is not None:
                return ops.Release(self.name, self.token, self._mine.mod_revision)
            case _:
                # With others before us that own together, count them first; alone, one operation decides.
                if self._mine is None or effective_limit(self.record.limit, self._others) > 1:
                    return ops.Look(self.name)
                return self._promote(alone=True, now=now)

    def _promote(self, *, alone: bool, now: float) -> ops.Operation:
        mine = self._mine
        assert mine is not None
        self.answer_by = now + self.answer_seconds
        key = self.lease, self.epoch, self.name, self.token, self.record
        return ops.Promote(*key, mine.create_revision, mine.mod_revision, alone)

    def _withdraw(self, now: float) -> ops.Operation:
        self._allow_answers(now)
        if self._doubtful:
            return self._resolve_doubt(now)
        self._state = State.WITHDRAWING
        self._tries = 1
        return self._send(now)

    def _allow_answers(self, now: float) -> None:
        self.give_up_at = self.deadline = self.answer_by = now + self.answer_seconds

    def _fail(self, now: float) -> ops.Operation | AcquireOutcome:
        if self._doubtful or self._state is State.WITHDRAWING:
            return self._resolve_doubt(now)
        return self._unavailable()

    def _resolve_doubt(self, now: float) -> ops.Operation:
        self.answer_by = max(self.deadline, now)
        self._resolve = Resolve(lease=self.lease, name=self.name, token=self.token, deadline=self.answer_by)
        return self._resolve.start(now)
