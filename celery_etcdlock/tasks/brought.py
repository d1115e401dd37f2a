"""The locks that a message brings along, since they were taken for it when it was published.

What becomes of them depends on the lifetime: the run takes them over, or drops them where they end with the start. One
that isn't there any more as the message knows it has lapsed, or is with a copy of the message, or a newer call has put
itself in its place; only the last means that this one mustn't run.
"""

from __future__ import annotations

from celery_etcdlock.core.ownership import Key
from celery_etcdlock.locking.claim import Claim
from celery_etcdlock.tasks.held import HeldLocks
from celery_etcdlock.tasks.line import Line
from celery_etcdlock.tasks.replaced import end_if_replaced
from celery_etcdlock.tasks.run import Run

__all__ = ["BroughtLocks"]


class BroughtLocks:
    """``claims`` are those not yet taken over or dropped. Raises ``LockUnavailable``, and what ``skip`` raises."""

    def __init__(self, run: Run, held: HeldLocks, line: Line) -> None:
        self._run = run
        self._held = held
        self._line = line
        self.claims = run.call.claims

    def check(self) -> None:
        """Whether a newer call took our place while we were away."""
        for claim in self.claims:
            keys = self._run.manager.pending.look(claim.name)
            if not any(key.token == claim.token and key.mod_revision == claim.revision for key in keys):
                self._check_not_replaced(claim, keys)

    def drop(self) -> None:
        pending = self._run.manager.pending
        for claim in self.claims:
            if not pending.drop(claim):
                self._check_not_replaced(claim, pending.look(claim.name))
        self.claims = ()

    def take_over(self) -> bool:
        """Take them over. Returns whether there were some and all are ours now."""
        if not self.claims:
            return False
        for claim in self.claims:
            conflict = self._held.take_over(claim)
            if conflict is not None:
                self._check_not_replaced(claim, conflict.keys)
                # From here on as anybody who comes, who would take the others for somebody's.
                self._held.release()
                for other in self.claims:
                    if other is not claim:
                        self._run.manager.pending.drop(other)
                self.claims = ()
                return False
        self.claims = ()
        return True

    def _check_not_replaced(self, claim: Claim, keys: tuple[Key, ...]) -> None:
        place = self._line.place
        end_if_replaced(self._run, claim, keys, leave=() if place is None else (place,))
