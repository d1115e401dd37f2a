"""GiveBack: a queued task that was marked as replaced may run after all, for what was to take its place never will.

Deleting the mark again does no harm, so an unanswered try is simply repeated. It comes before the deletion of the key
that the newer call took: in between, the older one waits behind that key; the other way round nobody might run.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery_etcdlock.core.operations import Operation, Unmark
from celery_etcdlock.core.protocol.machine import Machine, Unavailable
from celery_etcdlock.core.replies import Done, Failed, Reply


@dataclass(frozen=True, slots=True)
class GivenBack:
    """The mark is gone."""


@dataclass(kw_only=True, eq=False)
class GiveBack(Machine["GivenBack | Unavailable"]):
    """Take the mark of ``task_id`` away."""

    task_id: str

    def _send(self, now: float) -> Operation:
        return Unmark(self.task_id)

    def on(self, reply: Reply, now: float) -> Operation | GivenBack | Unavailable:
        match reply:
            case Done():
                return GivenBack()
            case Failed(error=error):
                return self._try_again(error, now)
            case _:  # a Pause is over
                return self._send(now)
