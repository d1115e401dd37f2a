"""How soon a redelivered copy looks again for the run that holds its lock."""

from __future__ import annotations

import random

from celery_etcdlock.core.conflict_decision import Place, Reschedule, Situation, on_conflict
from celery_etcdlock.core.record import MessageRelation


def test_a_copy_looks_ever_more_rarely_for_a_run_that_takes_long() -> None:
    """Twice a second at first, then after a quarter of the time that it has waited, and at least every 5 s."""
    waited, looks = 0.0, 0
    jitter = random.Random(1)
    while waited < 3600.0:
        situation = Situation(Place.WORKER, "skip", message_relation=MessageRelation.COPY, comebacks=3, waited=waited)
        decision = on_conflict(situation, jitter)
        assert isinstance(decision, Reschedule)
        assert decision.comebacks == 3, "else it is no copy any more"
        assert 0.25 <= decision.seconds <= min(max(0.5, waited / 4), 5.0)
        waited, looks = waited + decision.seconds, looks + 1
    assert looks < 1200, "it was 9,600, with twice a second for an hour"


def test_a_member_of_a_chord_comes_back_as_rarely_as_by_its_policy() -> None:
    """It is ``retry`` where the user chose none for the task, whatever the setting says."""

    def longest(situation: Situation) -> float:
        decisions = [on_conflict(situation, random.Random(seed)) for seed in range(50)]
        return max(decision.seconds for decision in decisions if isinstance(decision, Reschedule))

    by_setting = Situation(Place.WORKER, "skip", in_chord_header=True, comebacks=20)
    by_choice = Situation(Place.WORKER, "retry", policy_is_own=True, comebacks=20)
    assert longest(by_setting) == longest(by_choice) > 5.0
