"""Which policy a conflict meets, and how soon a message that it sends back comes again."""

from __future__ import annotations

import random

import pytest

from celery_etcdlock.core.conflict_decision import Place, Reschedule, Situation, on_conflict
from celery_etcdlock.core.policy_choice import policy_of
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.core.task_options import TaskOptions
from celery_etcdlock.errors import LockConflict


def test_a_copy_looks_ever_more_rarely_for_a_run_that_takes_long() -> None:
    """Twice a second at first, then after a quarter of the time that it has waited, and at least every 5 s."""
    waited, looks = 0.0, 0
    jitter = random.Random(1)
    while waited < 3600.0:
        delivery = Delivery("id", comebacks=3)
        situation = Situation(Place.WORKER, "skip", delivery, related=delivery, waited=waited)
        decision = on_conflict(situation, jitter)
        assert isinstance(decision, Reschedule)
        assert decision.comebacks == 3, "else it is no copy any more"
        assert 0.25 <= decision.seconds <= min(max(0.5, waited / 4), 5.0)
        waited, looks = waited + decision.seconds, looks + 1
    assert looks < 1200, "it was 9,600, with twice a second for an hour"


@pytest.mark.parametrize("at_enqueue", [True, False])
@pytest.mark.parametrize(("own", "policy"), [(None, "retry"), ("skip", "skip")])
def test_a_member_of_a_chord_retries_unless_its_task_says_otherwise(
    own: str | None, policy: str, at_enqueue: bool
) -> None:
    """Whatever the setting says; so it also comes back as rarely as by ``retry``, and not as those in a queue do."""
    options = TaskOptions.from_attributes("t", {"lock": "until_executed", "on_conflict": own})
    settings = Settings.from_mapping({"etcdlock_endpoints": "memory://", "etcdlock_on_conflict": "skip"}, {}, "")
    error = LockConflict("name", "somebody", None)
    found = policy_of(options, settings, error, at_enqueue=at_enqueue, in_chord_header=True)
    assert found == policy


def test_who_retries_comes_back_more_rarely_than_who_has_a_queue_position() -> None:
    def longest(policy: str) -> float:
        situation = Situation(Place.WORKER, policy, Delivery("id", comebacks=20))
        decisions = [on_conflict(situation, random.Random(seed)) for seed in range(50)]
        return max(decision.seconds for decision in decisions if isinstance(decision, Reschedule))

    assert longest("retry") > 10.0 > 5.0 >= longest("wait")
