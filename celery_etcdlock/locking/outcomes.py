"""What an attempt to take a lock comes to when it isn't a lock that is held."""

from __future__ import annotations

from dataclasses import dataclass, field

from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Record


@dataclass(frozen=True, slots=True)
class Claim:
    """A lock taken for a message that hasn't started. Who knows these three may take it over, or drop it.

    ``replaces``: the task in whose place the message is, where that was marked as replaced.
    """

    name: str
    token: str
    revision: int
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class Conflict:
    """Others hold the lock. ``keys`` are theirs, owners first.

    ``has_run``: whether the run that asked has come to its end before; ``None`` where that isn't known.
    """

    name: str
    keys: tuple[Key, ...]
    has_run: bool | None = field(default=None, compare=False)

    @property
    def holder(self) -> Record | None:
        """The first holder; ``None`` where nobody is left, or a record that we can't read."""
        return self.keys[0].record if self.keys else None
