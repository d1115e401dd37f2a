"""TakeOver: rewrite a key that is there already, and so become its owner.

A lock that was taken when a message was published changes hands without ever being free: its key stays where it is in
the order of creation, and is rewritten on the new owner's lease, under the ``mod_revision`` that the new owner knows:

* from the message to the worker that starts it (the revision travels in the message's headers);
* from a worker that ends to the retry of its message, for which the key is marked as handed over;
* from a queued message to the newer one that replaces it;
* from a worker that ends to nobody: a least hold, which stands until its time is over.

Each of these writes moves ``mod_revision``, so of several who know one revision only one succeeds, and whoever is late
finds its guard broken: the new number is the new owner's fencing token (rule 1).

*Failure.* Others may rewrite this key as well, so a try without an answer can't tell by the token that the key is its
own work: the record carries the random ``attempt``. A try that stays unanswered is resolved before it is given up, or
it could put the key on our renewed lease when nobody expects it any more (rule 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from celery_etcdlock.core import replies as store_replies
from celery_etcdlock.core.operations import Operation, Promote, Unmark
from celery_etcdlock.core.ownership import Key, find_key
from celery_etcdlock.core.protocol.acquire import Acquired
from celery_etcdlock.core.protocol.machine import SESSION_GONE, KeyMachine, Machine, SessionLost, Unavailable
from celery_etcdlock.core.protocol.resolve_doubt import Resolve, Resolved
from celery_etcdlock.errors import LockUnavailable


@dataclass(frozen=True, slots=True)
class Refused:
    """The key isn't there as it was known. ``keys`` are those under the name now, in order."""

    keys: tuple[Key, ...]


TakeOverOutcome = Acquired | Refused | SessionLost | Unavailable


@dataclass(kw_only=True, eq=False)
class TakeOver(KeyMachine[TakeOverOutcome]):
    """Take over one key. ``record.attempt`` must be random."""

    mod_revision: int
    replaces: str | None = None

    _resolve: Resolve | None = field(default=None, init=False)

    def _send(self, now: float) -> Operation:
        key = self.lease, self.epoch, self.name, self.token, self.record
        return Promote(*key, create_revision=0, mod_revision=self.mod_revision, alone=False, replaces=self.replaces)

    def on(self, reply: store_replies.Reply, now: float) -> Operation | TakeOverOutcome:
        if self._resolve is not None:
            step = self._resolve.on(reply, now)
            if isinstance(step, Resolved | Unavailable):
                return self._unavailable(doubtful=isinstance(step, Unavailable))
            return step
        match reply:
            case store_replies.Owned(revision=revision, has_run=has_run):
                # Not doubtful: an earlier try that is still under way finds its guard broken.
                return Acquired(revision, has_run=has_run)
            case store_replies.Present(keys=keys):
                mine = find_key(keys, self.token)
                if mine is not None and mine.record is not None and mine.record.attempt == self.record.attempt:
                    return Acquired(mine.mod_revision)
                return Refused(keys)
            case store_replies.EpochMoved(epoch=epoch):
                self.epoch = epoch
                self._doubtful = False
                return self._send(now) if now < self.answer_by else self._unavailable()
            case store_replies.SessionGone():
                return SESSION_GONE
            case store_replies.Failed(error=error):
                return self._on_failed(error, now)
            case _:  # a Pause is over
                return self._send(now)

    def _on_failed(self, error: LockUnavailable, now: float) -> Operation | TakeOverOutcome:
        self._error = error
        self._doubtful = self._doubtful or error.maybe_applied
        step = self._try_again(error, now, give_up_at=self.give_up_at)
        if isinstance(step, Unavailable) and self._doubtful:
            self.answer_by = max(self.answer_by, now)
            self._resolve = Resolve(
                lease=self.lease, name=self.name, token=self.token, deadline=self.answer_by, attempt=self.record.attempt
            )
            return self._resolve.start(now)
        return step


@dataclass(kw_only=True, eq=False)
class GiveBack(Machine["store_replies.Done | Unavailable"]):
    """``task_id``, which was marked as replaced, may run after all: what was to take its place never will.

    Deleting the mark again does no harm, so an unanswered try is simply repeated. It comes before the deletion of the
    key that the newer call took: in between, the older one waits behind it; the other way round nobody might run.
    """

    task_id: str

    def _send(self, now: float) -> Operation:
        return Unmark(self.task_id)

    def on(self, reply: store_replies.Reply, now: float) -> Operation | store_replies.Done | Unavailable:
        match reply:
            case store_replies.Done():
                return reply
            case store_replies.Failed(error=error):
                return self._try_again(error, now)
            case _:  # a Pause is over
                return self._send(now)
