"""What a task does that can't acquire its lock: somebody holds it, or etcd is unreachable.

Pure decisions, from how the task was called and whose the lock is. Who holds it matters first:

* a *copy* of this very message (a redelivery) holds it: the work is being done, or its worker has died. Neither drop
  this copy nor run it beside the first: come back.
* a *predecessor* holds it (the delivery that this one retries or replaces): it is about to release the lock. No
  conflict: wait a moment for that, then come back.
* a *stranger* holds it: a conflict, and the policy decides.

A task that was called as a plain function raises. It can't be skipped, for the exception by which Celery skips a task
would end the task around it; and it has no message that could come back.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

from celery_etcdlock.core.policies import POLICIES, Facts
from celery_etcdlock.core.record import Delivery

#: Seconds that a retry waits in its slot for the release of the run before it.
PREDECESSOR_SECONDS = 1.0

FIRST_CONFLICT_SECONDS = 0.5
LONGEST_CONFLICT_SECONDS = 15.0
#: For messages with a queue position: coming back late costs them only the time that the lock is free meanwhile.
LONGEST_WAIT_SECONDS = 5.0
#: A copy's delay, as a part of the time that it has waited: it comes back at most so much too late.
COPY_PART = 0.25
FIRST_OUTAGE_SECONDS = 1.0
LONGEST_OUTAGE_SECONDS = 60.0


class Place(Enum):
    """How the task's body is about to run."""

    DIRECT = "called as a function"
    EAGER = "applied eagerly"
    WORKER = "run by a worker"


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision depends on. Times in seconds; ``waited`` counts from the first time that the task came back.

    ``related``: the delivery that holds the lock, if it is one of the same message.
    """

    place: Place
    policy: str
    delivery: Delivery
    related: Delivery | None = None
    waited_for_predecessor: bool = False
    waited: float = 0.0
    wait_timeout: float = 300.0


class Verdict(Enum):
    """What is decided of a run whose message doesn't go back to its queue."""

    SKIP = "don't run; the result says why"
    FAIL = "raise the conflict or the outage"
    WAIT_FOR_PREDECESSOR = "keep the pool slot, wait for PREDECESSOR_SECONDS, and try again"
    RUN_UNPROTECTED = "run without a lock, as the user chose"


@dataclass(frozen=True, slots=True)
class Reschedule:
    """Send the message back to its queue, to come again after so many seconds; ``comebacks`` goes along.

    ``facts``, of the policy, say what it does besides: joins, keeps a queue position, has the holder release the lock.
    """

    seconds: float
    comebacks: int
    facts: Facts = POLICIES["retry"]


def on_conflict(situation: Situation, jitter: random.Random) -> Verdict | Reschedule:
    """What a task does whose lock somebody else holds."""
    if situation.place is Place.DIRECT:
        return Verdict.FAIL
    comebacks = situation.delivery.comebacks
    if situation.place is Place.WORKER and situation.related is not None:
        if situation.related == situation.delivery:
            # Its counter stays, so that it is still known as a copy; its delays grow with the time that it has waited.
            seconds = min(max(FIRST_CONFLICT_SECONDS, situation.waited * COPY_PART), LONGEST_WAIT_SECONDS)
            return Reschedule(seconds * jitter.uniform(0.5, 1.0), comebacks)
        if not situation.waited_for_predecessor:
            return Verdict.WAIT_FOR_PREDECESSOR
        return Reschedule(_conflict_seconds(situation, jitter), comebacks + 1)
    if situation.policy == "skip":
        return Verdict.SKIP
    facts = POLICIES[situation.policy]
    if facts.waits and situation.place is Place.WORKER and situation.waited < situation.wait_timeout:
        seconds = min(_conflict_seconds(situation, jitter), situation.wait_timeout - situation.waited)
        return Reschedule(seconds, comebacks + 1, facts)
    return Verdict.FAIL


def on_unavailable(place: Place, policy: str, comebacks: int, jitter: random.Random) -> Verdict | Reschedule:
    """What a task does when nobody can tell who holds its lock (``etcdlock_on_unavailable``)."""
    if policy == "run":
        return Verdict.RUN_UNPROTECTED
    if policy == "retry" and place is Place.WORKER:
        return Reschedule(_backoff(FIRST_OUTAGE_SECONDS, LONGEST_OUTAGE_SECONDS, comebacks, jitter), comebacks + 1)
    return Verdict.FAIL


def _conflict_seconds(situation: Situation, jitter: random.Random) -> float:
    longest = LONGEST_CONFLICT_SECONDS if situation.policy == "retry" else LONGEST_WAIT_SECONDS
    return _backoff(FIRST_CONFLICT_SECONDS, longest, situation.delivery.comebacks, jitter)


def _backoff(first: float, longest: float, number: int, jitter: random.Random) -> float:
    """Doubling from ``first`` to ``longest``, less up to half of it by chance, so that losers don't return in step."""
    return min(first * 2.0 ** min(number, 30), longest) * jitter.uniform(0.5, 1.0)
