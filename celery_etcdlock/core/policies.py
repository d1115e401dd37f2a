"""What a loser gets: the names, where each of them makes sense, and how a task's choice is written.

A conflict is met at two places. *At enqueue* there is no message yet: it can be left out (``skip``, ``join``), refused
(``raise``), put in the place of a queued one (``replace``), or published without the lock, to be decided when it runs
(``retry`` and ``wait``, which both mean "later"). *At run* there is a message that must be given an end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from celery_etcdlock.core.lifetimes import Lifetime
from celery_etcdlock.core.value_checks import choice, did_you_mean, shown


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rest of the code needs to know of a policy: it asks here, and compares no names."""

    #: May be chosen for the call alone.
    at_enqueue: bool = False
    #: Its messages come back for the lock until ``wait_timeout``, and the gate parks them.
    waits: bool = False
    #: They keep a queue position meanwhile: for one lock, not for several.
    in_order: bool = False
    #: The task ends with another run's result, so results must be kept.
    needs_result: bool = False
    #: It asks the holder to release, so there must be just one.
    replaces: bool = False


#: What each policy does at a conflict is decided in ``core.conflict_decision``.
POLICIES = {
    "skip": Facts(at_enqueue=True),
    "raise": Facts(at_enqueue=True),
    "retry": Facts(waits=True),
    "wait": Facts(waits=True, in_order=True),
    "join": Facts(at_enqueue=True, waits=True, needs_result=True),
    "replace": Facts(at_enqueue=True, waits=True, in_order=True, replaces=True),
}
AT_ENQUEUE = tuple(name for name, facts in POLICIES.items() if facts.at_enqueue)

#: A name, or a callable of the conflict that returns one.
Policy = str | Callable[..., object]


@dataclass(frozen=True)
class Policies:
    """A policy for each place; ``None``: the task doesn't say."""

    enqueue: Policy | None = None
    run: Policy | None = None

    @property
    def names(self) -> frozenset[str]:
        """The names that are known beforehand: not those that a callable may choose."""
        return frozenset(policy for policy in (self.enqueue, self.run) if isinstance(policy, str))

    def check_for(self, lifetime: Lifetime, *, is_pair: bool) -> None:
        """Raises ``ValueError`` where a policy makes no sense for ``lifetime``."""
        if is_pair and self.enqueue is not None and not lifetime.at_enqueue:
            raise ValueError(f"on_conflict['enqueue'] is given, but lock={lifetime.name!r} takes nothing at enqueue")
        if is_pair and self.run is not None and not lifetime.while_running:
            raise ValueError(f"on_conflict['run'] is given, but lock={lifetime.name!r} holds nothing while it runs")
        waits_for_run = having(self.names, lambda facts: facts.waits and not facts.at_enqueue)
        if lifetime.name == "until_executing" and waits_for_run:
            raise ValueError(
                "on_conflict='retry' and 'wait' make no sense with lock='until_executing', which nothing holds while it"
                " runs: use 'skip', 'raise', 'join' or 'replace', or another lock"
            )
        if lifetime.name == "until_expired" and having(self.names, lambda facts: facts.replaces):
            raise ValueError(
                "on_conflict='replace' makes no sense with lock='until_expired', whose key outlives its task: use "
                "'skip', 'raise', 'join', 'retry' or 'wait'"
            )


def having(names: Iterable[str], fact: Callable[[Facts], bool]) -> list[str]:
    """Those of the policies for which the fact holds."""
    return [name for name in POLICIES if name in names and fact(POLICIES[name])]


def check_on_conflict(value: Any) -> Policy | Policies:
    """A name, a callable, or a dict of the two places."""
    if not isinstance(value, dict):
        return _check_policy(value)
    for place in value:
        if place not in ("enqueue", "run"):
            hint = did_you_mean(str(place), ("enqueue", "run"))
            raise ValueError(f"as a dict has the keys 'enqueue' and 'run', not {shown(place)}{hint}")
    if not value:
        raise ValueError("as a dict must have the key 'enqueue' or 'run'")
    policies = Policies(**{place: _check_policy(policy) for place, policy in value.items()})
    if isinstance(policies.enqueue, str) and policies.enqueue not in AT_ENQUEUE:
        raise ValueError(
            f"['enqueue'] must be one of {', '.join(map(repr, AT_ENQUEUE))}, not {policies.enqueue!r}: to publish the "
            "message and decide when it runs, give that name for both places, as one str"
        )
    return policies


def _check_policy(value: object) -> Policy:
    return value if callable(value) and not isinstance(value, str) else choice(*POLICIES)(value)
