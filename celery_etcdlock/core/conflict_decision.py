"""What a task does that can't acquire its lock: somebody holds it, or etcd is unreachable.

Pure decisions, from how the task was called and whose the lock is. Who holds it matters first:

* a *copy* of this very message (a redelivery) holds it: the work is being done, or its worker has died. Neither drop
  this copy nor run it beside the first: come back.
* a *predecessor* holds it (the delivery that this one retries or replaces): it is about to release the lock. No
  conflict: wait a moment for that, then come back.
* a *stranger* holds it: a conflict, and the policy decides.

A task that was called as a plain function raises. It can't be skipped, for the exception by which Celery skips a task
would end the task around it; and it has no message that could come back. In a chord's header a skipped member would
fail the body, so there the policy is ``retry`` unless the user chose one for the task.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

from celery_etcdlock.core.policies import POLICIES
from celery_etcdlock.core.record import MessageRelation

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
    """What a decision depends on. Times in seconds; ``waited`` counts from the first time that the task came back."""

    place: Place
    policy: str
    policy_is_own: bool = False
    message_relation: MessageRelation = MessageRelation.STRANGER
    waited_for_predecessor: bool = False
    in_chord_header: bool = False
    comebacks: int = 0
    waited: float = 0.0
    wait_timeout: float = 300.0


@dataclass(frozen=True, slots=True)
class Skip:
    """Don't run; the result says why."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Raise the conflict or the outage."""


@dataclass(frozen=True, slots=True)
class Reschedule:
    """Send the message back to its queue, to come again after so many seconds; ``comebacks`` goes along.

    ``with_position``: it has a queue position meanwhile. ``replaces``: after the holder was asked to release the lock.
    """

    seconds: float
    comebacks: int
    with_position: bool = False
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class Join:
    """Take on the holder's result; until there is one, come back as in ``Reschedule``."""

    seconds: float
    comebacks: int


@dataclass(frozen=True, slots=True)
class WaitForPredecessor:
    """Keep the pool slot, and wait as a waiter for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class RunUnprotected:
    """Run without a lock, as the user chose."""


def on_conflict(situation: Situation, jitter: random.Random) -> Skip | Fail | Reschedule | Join | WaitForPredecessor:
    """What a task does whose lock somebody else holds."""
    if situation.place is Place.DIRECT:
        return Fail()
    if situation.place is Place.WORKER and situation.message_relation is not MessageRelation.STRANGER:
        if situation.message_relation is MessageRelation.COPY:
            # Its counter stays, so that it is still known as a copy; its delays grow with the time that it has waited.
            seconds = min(max(FIRST_CONFLICT_SECONDS, situation.waited * COPY_PART), LONGEST_WAIT_SECONDS)
            return Reschedule(seconds * jitter.uniform(0.5, 1.0), situation.comebacks)
        if not situation.waited_for_predecessor:
            return WaitForPredecessor(PREDECESSOR_SECONDS)
        return Reschedule(_conflict_seconds(situation.policy, situation, jitter), situation.comebacks + 1)
    policy = "retry" if situation.in_chord_header and not situation.policy_is_own else situation.policy
    if policy == "skip":
        return Skip()
    facts = POLICIES[policy]
    if facts.waits and situation.place is Place.WORKER and situation.waited < situation.wait_timeout:
        seconds = min(_conflict_seconds(policy, situation, jitter), situation.wait_timeout - situation.waited)
        if facts.needs_result:
            return Join(seconds, situation.comebacks + 1)
        return Reschedule(seconds, situation.comebacks + 1, with_position=facts.in_order, replaces=facts.replaces)
    return Fail()


def on_unavailable(
    place: Place, policy: str, comebacks: int, jitter: random.Random
) -> Fail | Reschedule | RunUnprotected:
    """What a task does when nobody can tell who holds its lock (``etcdlock_on_unavailable``)."""
    if policy == "run":
        return RunUnprotected()
    if policy == "retry" and place is Place.WORKER:
        return Reschedule(_backoff(FIRST_OUTAGE_SECONDS, LONGEST_OUTAGE_SECONDS, comebacks, jitter), comebacks + 1)
    return Fail()


def _conflict_seconds(policy: str, situation: Situation, jitter: random.Random) -> float:
    longest = LONGEST_CONFLICT_SECONDS if policy == "retry" else LONGEST_WAIT_SECONDS
    return _backoff(FIRST_CONFLICT_SECONDS, longest, situation.comebacks, jitter)


def _backoff(first: float, longest: float, number: int, jitter: random.Random) -> float:
    """Doubling from ``first`` to ``longest``, less up to half of it by chance, so that losers don't return in step."""
    return min(first * 2.0 ** min(number, 30), longest) * jitter.uniform(0.5, 1.0)
