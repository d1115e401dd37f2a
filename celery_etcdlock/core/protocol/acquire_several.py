"""AcquireEach and AcquireAll: many try-locks in one round trip.

*Each* has an outcome of its own: what a group of calls takes before its messages are published. *All* are taken, or
none: the several locks of one task. No name twice in one operation (rule 4): the caller sees to it.

States::

    TRYING ---> JUDGING    a key is in the way that seems over: ask how old its lease is (``core.expiry``)
                JUDGING --> CLEARING   its time is over: delete it as it was read
                        --> TRYING     it stands, and counts as in the way
           ---> TRYING     fewer keys than the limit: again, on the condition that none has been created since (rule 5)
           ---> FENCING    an earlier try went unanswered: fence the session, then try once more
           ---> outcome

*Failure.* A repeat finds what an unanswered try has done. But that try may still arrive after the outcome, and put a
key that was released meanwhile. So nothing is decided while a try is in doubt: the session's epoch is moved, which no
late request survives, and what the next try says is certain (rule 3). Without an answer until ``give_up_at`` all
tokens are doubtful, and the outcome says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from celery_etcdlock.core import operations as ops
from celery_etcdlock.core import replies as store_replies
from celery_etcdlock.core.expiry import Expiry
from celery_etcdlock.core.key_kinds import is_kept_out
from celery_etcdlock.core.ownership import Key, effective_limit
from celery_etcdlock.core.protocol.acquire import Acquired, Conflicted
from celery_etcdlock.core.protocol.machine import SESSION_GONE, Machine, SessionLost, Unavailable


@dataclass(frozen=True, slots=True)
class EachAcquired:
    """What became of each try, in their order."""

    outcomes: tuple[Acquired | Conflicted, ...]


@dataclass(kw_only=True, eq=False)
class AcquireEach(Machine["EachAcquired | SessionLost | Unavailable"]):
    """Try each of ``tries``, which name one lease. Times as in ``Acquire``; their epochs are replaced by ``epoch``."""

    tries: tuple[ops.TryAcquire, ...] = field(kw_only=False)
    epoch: int
    give_up_at: float
    wall_offset: float

    #: The outcomes that are known, by name and token.
    _decided: tuple[tuple[tuple[str, str], Acquired | Conflicted], ...] = field(default=(), init=False)
    #: Keys in the way that seem over, by lock name; and whether the first of them is.
    _suspects: tuple[tuple[str, Key], ...] = field(default=(), init=False)
    _clearing = False
    _asked_at = 0.0
    _fencing = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._open = self.tries
        self._ends = Expiry(self.wall_offset)

    def _send(self, now: float) -> ops.Operation:
        if self._fencing:
            return ops.FenceSession(self.tries[0].lease)
        if self._suspects:
            name, key = self._suspects[0]
            if self._clearing:
                return ops.Release(name, key.token, key.mod_revision)
            self._asked_at = now
            return self._ends.question(name, key)
        epoch = self.epoch
        return self._try(tuple(one if one.epoch == epoch else replace(one, epoch=epoch) for one in self._open))

    def on(self, reply: store_replies.Reply, now: float) -> ops.Operation | EachAcquired | SessionLost | Unavailable:
        match reply:
            case store_replies.SessionFenced(epoch=epoch) | store_replies.EpochMoved(epoch=epoch):
                # A try that is refused for its epoch says nothing yet of earlier ones, but none can follow.
                self.epoch = epoch
                self._fencing = self._doubtful = False
            case store_replies.Released() | store_replies.NotHeld():
                self._suspects, self._clearing = self._suspects[1:], False
            case store_replies.LeaseAge() | store_replies.LeaseUnknown():
                ends = self._ends.judged(self._suspects[0][1], reply, self._asked_at, now)
                if ends is None:
                    self._clearing = True
                else:
                    self._ends, self._suspects = ends, self._suspects[1:]
            case store_replies.SessionGone():
                return SESSION_GONE
            case store_replies.Failed(error=error):
                self._error = error
                # What asks about others' keys, or clears them, leaves no doubt about ours.
                self._doubtful = self._doubtful or (error.maybe_applied and not self._suspects)
                doubtful = self._doubtful or bool(self._decided)
                return self._try_again(error, now, doubtful=doubtful, give_up_at=self.give_up_at)
            case store_replies.Owned() | store_replies.EachTried() if self._doubtful:
                self._fencing = True
            case store_replies.Owned() | store_replies.EachTried():
                self._decide(reply, now)
                if not self._open:
                    decided = dict(self._decided)
                    return EachAcquired(tuple(decided[each.name, each.token] for each in self.tries))
                if now >= self.answer_by:
                    return self._unavailable(doubtful=True)
        return self._send(now)  # also when a Pause is over

    def _try(self, tries: tuple[ops.TryAcquire, ...]) -> ops.Operation:
        return ops.TryEach(tries)

    def _decide(self, reply: store_replies.Owned | store_replies.EachTried, now: float) -> None:
        assert isinstance(reply, store_replies.EachTried)
        still_open = []
        for each, outcome in zip(self._open, reply.outcomes, strict=True):
            if isinstance(outcome, store_replies.Owned):
                self._settle(each, Acquired(outcome.revision))
            elif (again := self._again(each, outcome, now)) is not None:
                still_open.append(again)
            else:
                self._settle(each, Conflicted(outcome.keys))
        self._open = tuple(still_open)

    def _settle(self, each: ops.TryAcquire, outcome: Acquired | Conflicted) -> None:
        self._decided = (*self._decided, ((each.name, each.token), outcome))

    def _again(self, each: ops.TryAcquire, present: store_replies.Present, now: float) -> ops.TryAcquire | None:
        """The next try; ``None`` when too many keys are in the way."""
        keys = present.keys
        if _is_free(each, keys):
            return replace(each, seen_revision=present.revision)
        suspects = [key for key in keys if now >= self._ends.ask_at(key)]
        if not _is_free(each, [key for key in keys if key not in suspects]):
            return None
        self._suspects = (*self._suspects, *((each.name, key) for key in suspects))
        # As if they hadn't been seen: one that stands, or changed hands meanwhile, has to refuse the next try too.
        return each


def _is_free(each: ops.TryAcquire, keys: Sequence[Key]) -> bool:
    """Whether the limit leaves room beside these keys."""
    record = each.record
    return len(keys) < effective_limit(record.limit, keys) and not is_kept_out(record.delivery, keys)


class AcquireAll(AcquireEach):
    """Take all of ``tries`` or none. All outcomes are ``Acquired`` with one fencing token, or some ``Conflicted``."""

    def _try(self, tries: tuple[ops.TryAcquire, ...]) -> ops.Operation:
        return ops.TryAll(tries)

    def _decide(self, reply: store_replies.Owned | store_replies.EachTried, now: float) -> None:
        if isinstance(reply, store_replies.Owned):
            for each in self._open:
                self._settle(each, Acquired(reply.revision, has_run=reply.has_run))
            self._open = ()
            return
        presents = [outcome for outcome in reply.outcomes if isinstance(outcome, store_replies.Present)]
        agains = [self._again(each, present, now) for each, present in zip(self._open, presents, strict=True)]
        following = tuple(again for again in agains if again is not None)
        if len(following) == len(agains):
            self._open = following
            return
        self._suspects = ()
        for each, present, again in zip(self._open, presents, agains, strict=True):
            self._settle(each, Conflicted(() if again is not None else present.keys, present.has_run))
        self._open = ()
