"""What is explored: few clients and few faults each, together all of them.

``SCENARIOS`` run with every test run; with ``CELERY_ETCDLOCK_DEEP=1`` each has more faults and takes minutes.
"""

from __future__ import annotations

from tests.model.world import Attempt, Faults, Plan, Scenario

__all__ = ["SCENARIOS", "by_name"]

TRY = Attempt()
WAIT = Attempt(wait_seconds=100.0)
TAKE = Attempt(takes_over=True)
BRIEF = Attempt(wait_seconds=10.0)
#: Longer than any key with an end stands.
LONG = Attempt(wait_seconds=5000.0)
WINDOW = Attempt(stands_for=10.0)
POSITION = Attempt(stands_for=10.0, comes_back=2)
COPY = Attempt(copies=True)
MINUTES = 60.0

SCENARIOS = (
    Scenario(
        "try-lock, limit 1",
        (Plan((TRY, TRY)), Plan((TRY,))),
        Faults(unanswered=2),
        deep=Faults(unanswered=3),
    ),
    Scenario(
        "try-lock, refused requests and repeats by the transport",
        (Plan((TRY, TRY)), Plan((TRY,))),
        Faults(unanswered=1, refused=1, echoes=1),
        deep=Faults(unanswered=2, refused=1, echoes=1),
    ),
    Scenario(
        # Past the deadlines, so that tokens stay in doubt: the keeper's fence moves the epoch under the next attempt.
        "tokens left in doubt",
        (Plan((TRY, TRY)), Plan((TRY,), ahead=True)),
        Faults(unanswered=1, ticks=1, delays=0),
        instants=(6, 12),
        deep=Faults(unanswered=2, ticks=2, delays=1),
    ),
    Scenario(
        "tokens left in doubt, nobody else there",
        (Plan((TRY, TRY)),),
        Faults(unanswered=2, ticks=1, delays=0),
        instants=(6, 12),
        deep=Faults(unanswered=3, ticks=2, delays=2, echoes=1),
    ),
    Scenario(
        "try-lock, a crash",
        (Plan((TRY,)), Plan((TRY,), opened=False, not_before=15)),
        Faults(delays=0, unanswered=1, crashes=1, ticks=2),
        instants=(15, 30, 45),
        answer_seconds=50,
        deep=Faults(unanswered=2, refused=1, crashes=1, ticks=3),
    ),
    Scenario(
        "try-lock, limit 2",
        (Plan((TRY,), ahead=True), Plan((TRY,)), Plan((TRY,))),
        Faults(unanswered=1),
        limit=2,
        deep=Faults(unanswered=2),
    ),
    Scenario(
        "ordered wait, limit 1",
        (Plan((WAIT,), ahead=True), Plan((WAIT,)), Plan((WAIT,))),
        Faults(unanswered=1, spurious=1),
        deep=Faults(unanswered=2, spurious=1),
    ),
    Scenario(
        "ordered wait, one gives up",
        (Plan((WAIT,), ahead=True), Plan((BRIEF,)), Plan((WAIT,))),
        Faults(ticks=1),
        instants=(12,),
        answer_seconds=20,
        deep=Faults(unanswered=1, ticks=1),
    ),
    Scenario(
        "ordered wait, a waiter in doubt gives up",
        (Plan((TRY,), ahead=True), Plan((BRIEF, TRY))),
        Faults(unanswered=2, ticks=1),
        instants=(12,),
        answer_seconds=20,
        deep=Faults(unanswered=3, spurious=1, ticks=1),
    ),
    Scenario(
        "ordered wait, limit 2",
        (Plan((WAIT,), ahead=True), Plan((WAIT,)), Plan((WAIT,))),
        Faults(unanswered=1, spurious=1),
        limit=2,
        deep=Faults(unanswered=2, spurious=2),
    ),
    Scenario(
        "wait and try-lock, limits differ",
        (Plan((WAIT,), limit=2, ahead=True), Plan((WAIT,), limit=1), Plan((TRY,), limit=2)),
        Faults(unanswered=1),
        limit=2,
        deep=Faults(unanswered=2),
    ),
    Scenario(
        "leases and a slow clock",
        (Plan((TRY,), renewals=1, rate=0.99), Plan((TRY,), opened=False, not_before=30)),
        Faults(delays=1, ticks=3, unanswered=0),
        instants=(5, 30, 40, 60),
        answer_seconds=50,
        deep=Faults(ticks=4, unanswered=1),
    ),
    Scenario(
        "sessions opened and lost",
        (Plan((TRY, TRY), sessions=2, opened=False, rate=0.99), Plan((TRY,), opened=False, not_before=30)),
        Faults(delays=1, ticks=2),
        instants=(5, 30, 60),
        answer_seconds=50,
        deep=Faults(delays=2, ticks=3, unanswered=1, echoes=1),
    ),
    Scenario(
        "waiters on leases that run out",
        (Plan((WAIT,), rate=0.99, ahead=True), Plan((WAIT,), renewals=1)),
        Faults(delays=1, ticks=3),
        instants=(15, 30, 45, 60),
        answer_seconds=50,
        deep=Faults(ticks=4, crashes=1, unanswered=1),
    ),
    Scenario(
        # Its own renewals can't run: it hogs the GIL.
        "a parent renews for its child",
        (Plan((TRY,), guards=2, rate=0.99, ahead=True), Plan((TRY,), opened=False, not_before=30)),
        Faults(delays=1, ticks=4),
        instants=(16, 19, 30, 46, 60),
        answer_seconds=50,
        deep=Faults(delays=2, ticks=5, unanswered=1, crashes=1),
    ),
    Scenario(
        "a parent renews while the leader changes",
        (Plan((TRY,), guards=1, rate=0.99, ahead=True), Plan((TRY,), opened=False, not_before=30)),
        Faults(delays=0, ticks=2, elections=1),
        instants=(16, 30, 46),
        answer_seconds=50,
        deep=Faults(delays=1, ticks=3, elections=2, unanswered=1),
    ),
    Scenario(
        "leader changes",
        (Plan((TRY,), renewals=1, rate=0.99, ahead=True), Plan((TRY,), opened=False, not_before=30)),
        Faults(delays=0, ticks=2, elections=1),
        instants=(15, 30, 45),
        answer_seconds=50,
        deep=Faults(delays=1, ticks=3, elections=2, unanswered=1),
    ),
    Scenario(
        "an administrator deletes keys and revokes leases",
        (Plan((TRY, TRY), renewals=1, sessions=2), Plan((WAIT,))),
        Faults(delays=1, admin_deletes=1, admin_revokes=1),
        deep=Faults(admin_deletes=2, admin_revokes=1, unanswered=1),
    ),
    Scenario(
        "an administrator deletes a waiter's key",
        (Plan((TRY,)), Plan((WAIT,))),
        Faults(admin_deletes=1, unanswered=1, spurious=1),
        deep=Faults(admin_deletes=1, unanswered=2, spurious=2),
    ),
    Scenario(
        "handed over to a successor",
        (Plan((TRY,)), Plan(()), Plan((TRY,))),
        Faults(hand_overs=1, unanswered=1),
        deep=Faults(hand_overs=1, unanswered=2),
    ),
    Scenario(
        "a message's lock, two copies of it and a stranger",
        (Plan((TAKE,)), Plan((TAKE,)), Plan((TRY,))),
        Faults(unanswered=1),
        deep=Faults(unanswered=2, echoes=1),
    ),
    Scenario(
        # Past the deadline, so that a copy gives up what may still arrive.
        "a message's lock, a copy gives up",
        (Plan((TAKE,)), Plan((TAKE,))),
        Faults(unanswered=1, ticks=1, delays=0),
        instants=(6, 12),
        deep=Faults(unanswered=2, ticks=2, delays=1),
    ),
    Scenario(
        "a window, and clocks ten minutes ahead",
        (
            Plan((WINDOW,), wall=0.0, ahead=True),
            Plan((LONG,), wall=10 * MINUTES),
            Plan((WINDOW,), wall=10 * MINUTES, not_before=10.2),
        ),
        Faults(ticks=3, delays=2, unanswered=1),
        instants=(5, 10.2, 12),
        ttl_seconds=100,
        answer_seconds=40,
        deep=Faults(ticks=3, unanswered=2),
    ),
    Scenario(
        "a window of a host that is ten minutes behind",
        (
            Plan((WINDOW,), wall=-10 * MINUTES, not_before=5.5),
            Plan((LONG,), wall=0.0, not_before=9),
            Plan((WINDOW,), wall=-10 * MINUTES, not_before=15.2),
        ),
        Faults(ticks=5, delays=0),
        instants=(5.5, 9, 15.2, 16, 18),
        ttl_seconds=100,
        answer_seconds=40,
        deep=Faults(ticks=5, delays=1, unanswered=1),
    ),
    Scenario(
        "a window and a clock an hour ahead",
        (
            Plan((WINDOW,), wall=0.0, ahead=True),
            Plan((LONG,), wall=60 * MINUTES),
            Plan((TRY,), wall=60 * MINUTES, not_before=11),
        ),
        Faults(ticks=3, delays=1),
        instants=(5, 11, 13),
        ttl_seconds=100,
        answer_seconds=40,
        deep=Faults(ticks=3, unanswered=2),
    ),
    Scenario(
        "a window on a lease that is slow to open",
        (Plan((WINDOW,), wall=0.0, opened=False), Plan((LONG,), wall=10 * MINUTES, not_before=13)),
        Faults(ticks=4, delays=1),
        instants=(4, 13, 14.9, 18),
        ttl_seconds=100,
        answer_seconds=40,
        deep=Faults(ticks=4, delays=2, unanswered=2),
    ),
    Scenario(
        "a window and leader changes",
        (
            Plan((WINDOW,), wall=0.0, ahead=True),
            Plan((LONG,), wall=10 * MINUTES),
            Plan((WINDOW,), wall=0.0, not_before=12),
        ),
        Faults(ticks=4, delays=0, elections=1),
        instants=(5, 12, 14, 18),
        ttl_seconds=100,
        answer_seconds=40,
        deep=Faults(ticks=4, delays=1, elections=2),
    ),
    Scenario(
        # The new leader counts from 0, so the wall clock decides, a quarter of an hour late.
        "a long window and an election near its end",
        (Plan((Attempt(stands_for=1000.0),), wall=0.0, ahead=True), Plan((LONG,), wall=0.0)),
        Faults(ticks=4, delays=1, elections=1),
        instants=(990, 1002, 1899, 1901),
        ttl_seconds=5000,
        answer_seconds=40,
        shared_ttl_seconds=2048,
        deep=Faults(ticks=4, elections=2, unanswered=1),
    ),
    Scenario(
        "a message's lock whose time is over, its worker and others",
        (Plan((TAKE,)), Plan((WINDOW,), wall=0.0, not_before=12), Plan((LONG,), wall=10 * MINUTES, not_before=9)),
        Faults(ticks=2, delays=3),
        instants=(9, 12),
        claim_stands_for=10.0,
        ttl_seconds=100,
        answer_seconds=40,
        deep=Faults(ticks=2, delays=3, unanswered=1),
    ),
    Scenario(
        "a queue position, a holder and another who tries",
        (Plan((TRY,), ahead=True), Plan((POSITION, TRY), wall=0.0), Plan((TRY,), wall=10 * MINUTES)),
        Faults(delays=1, unanswered=1),
        ttl_seconds=100,
        answer_seconds=40,
        deep=Faults(delays=2, unanswered=2),
    ),
    Scenario(
        "queue positions whose time is over",
        (
            Plan((POSITION, TRY), wall=0.0),
            Plan((POSITION, TRY), wall=10 * MINUTES),
        ),
        Faults(delays=0, ticks=2),
        instants=(10.2, 12),
        ttl_seconds=100,
        answer_seconds=40,
        deep=Faults(delays=1, ticks=2, unanswered=1),
    ),
    Scenario(
        "a queue position, two copies of its message and a holder",
        (Plan((POSITION,), wall=0.0), Plan((COPY,), wall=0.0), Plan((TRY,), ahead=True)),
        Faults(delays=1, unanswered=1),
        ttl_seconds=100,
        answer_seconds=40,
        deep=Faults(delays=2, unanswered=2),
    ),
    Scenario(
        "transactions shared",
        (Plan((TRY,)), Plan((TRY,)), Plan((TRY,))),
        Faults(batches=2),
        deep=Faults(batches=2, unanswered=1),
    ),
)


def by_name(name: str) -> Scenario:
    return next(scenario for scenario in SCENARIOS if scenario.name == name)
