"""When a task's lock is held: the five lifetimes.

A lock taken *at enqueue* belongs to a message: nobody renews its key, and the message carries its token. A lock held
*while running* belongs to a process and is renewed. ``until_executed`` is one lock, which the process takes over from
its message; ``until_and_while_executing`` is two locks of two names, so that one call may be queued while another runs.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Of the names of locks that end when their task starts.
QUEUED_SUFFIX = ":queued"


@dataclass(frozen=True)
class Lifetime:
    """``hand_over``: the running task takes over the lock that its message held."""

    name: str
    at_enqueue: bool
    while_running: bool
    hand_over: bool = False

    def queued_name(self, name: str) -> str:
        """The name of the lock that a message holds, for the lock ``name`` of its task."""
        return name + QUEUED_SUFFIX if self.name in ("until_executing", "until_and_while_executing") else name


LIFETIMES: dict[str, Lifetime] = {
    lifetime.name: lifetime
    for lifetime in (
        Lifetime("while_executing", at_enqueue=False, while_running=True),
        Lifetime("until_executing", at_enqueue=True, while_running=False),
        Lifetime("until_executed", at_enqueue=True, while_running=True, hand_over=True),
        Lifetime("until_and_while_executing", at_enqueue=True, while_running=True),
        Lifetime("until_expired", at_enqueue=True, while_running=False),
    )
}
