"""Makes a plan that fails smaller: fewer calls and faults, a plainer deployment, the same rule broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tests.simulation.plan import Action, Config, Plan
from tests.simulation.world import Outcome

__all__ = ["shrink"]

PLAIN = Config()


def shrink(failed: Outcome, play: Callable[[Plan], Outcome], most_plays: int = 250) -> Outcome:
    """Greedily, until nothing can be left out any more or so many plays were tried."""
    assert failed.violation is not None
    rule, plays = failed.violation.rule, 0
    smallest = failed
    again = True
    while again and plays < most_plays:
        again = False
        for smaller in _smaller(smallest.plan):
            plays += 1
            outcome = play(smaller)
            if outcome.violation is not None and outcome.violation.rule == rule:
                smallest, again = outcome, True
                break
            if plays >= most_plays:
                break
    return smallest


def _smaller(plan: Plan) -> Iterator[Plan]:
    actions = plan.actions
    half = len(actions) // 2
    if half > 1:
        yield plan.with_actions(actions[:half])
        yield plan.with_actions(actions[half:])
    for number in reversed(range(len(actions))):
        yield plan.with_actions(actions[:number] + actions[number + 1 :])
    for name in (
        "workers",
        "slots",
        "gate",
        "duplicate",
        "delay",
        "lose_reply",
        "offsets",
        "mutex_switches",
        "prefetch",
    ):
        value = 1 if name in ("workers", "slots") else getattr(PLAIN, name)
        if getattr(plan.config, name) != value and not (name == "workers" and _names_worker(actions, "worker1")):
            yield replace(plan, config=replace(plan.config, **{name: value}))
    for number, action in enumerate(actions):
        if action.kind == "call":
            for plainer in _plainer(action.what):
                yield plan.with_actions([*actions[:number], replace(action, what=plainer), *actions[number + 1 :]])


def _names_worker(actions: list[Action], name: str) -> bool:
    return any(name in action.what for action in actions)


def _plainer(what: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    *start, script, options = what
    if options:
        yield (*start, script, {})
    if len(script["ends"]) > 1:
        yield (*start, {**script, "ends": ["ok"], "work": script["work"][-1:]}, options)
    if script["after"] or script["countdown"]:
        yield (*start, {**script, "after": 0.0, "countdown": 0}, options)
