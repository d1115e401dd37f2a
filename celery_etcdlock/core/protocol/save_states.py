"""Save states for the next holder of a lock, and be sure of the answer.

A save is one operation, guarded by the lock as we wrote it: once the lock is somebody else's, no save of ours can take
effect any more, however late it arrives. It also compares each state with what we saw of it, so it takes effect once.

*Failure.* A save without an answer is repeated as it was. Refused, it looks at what is there: its own values, all of
them, mean that an earlier try was the one that took effect. So each value must be one that nobody else writes: it has a
random id in it, or the fencing token. Without an answer by the deadline it stays *doubtful*: whoever gave the save may
repeat it as it was, or lose the lock, but may not save anything else for these keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery_etcdlock.core.operations import HeldKey, Operation, SaveStates, StateWrite
from celery_etcdlock.core.protocol.machine import Machine, Unavailable
from celery_etcdlock.core.replies import Changed, Failed, NotHeld, Reply, State, StatesRefused, StatesSaved
from celery_etcdlock.errors import LockUnavailable


@dataclass(frozen=True, slots=True)
class Saved:
    """All of them are there; ``revisions`` in the order of the writes (0 for one that was deleted)."""

    revisions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Somebody else wrote one of the states although the lock is ours: a person, or a fault."""

    states: tuple[State, ...]


@dataclass(frozen=True, slots=True)
class GuardLost:
    """The lock isn't ours any more. What was repeated may have taken effect before that."""

    doubtful: bool


@dataclass(kw_only=True, eq=False)
class Save(Machine["Saved | Overtaken | GuardLost | Unavailable"]):
    """Save ``writes``, all or none."""

    guard: HeldKey
    name: str
    writes: tuple[StateWrite, ...]
    _doubtful = False

    def _send(self, now: float) -> Operation:
        return SaveStates(self.guard, self.name, self.writes)

    def on(self, reply: Reply, now: float) -> Operation | Saved | Overtaken | GuardLost | Unavailable:
        match reply:
            case StatesSaved(revision=revision):
                return Saved(tuple(0 if write.value is None else revision for write in self.writes))
            case StatesRefused(states=states):
                mine = self._mine(states)
                return Overtaken(states) if mine is None else Saved(mine)
            case NotHeld():
                return GuardLost(self._doubtful)
            case Failed(error=error):
                self._doubtful = self._doubtful or error.maybe_applied
                return self._try_again(error, now, doubtful=self._doubtful)
            case Changed():  # a Pause is over
                return self._send(now)
            case _:
                return Unavailable(LockUnavailable(f"a save was answered with {reply!r}"), doubtful=True)

    def _mine(self, states: tuple[State, ...]) -> tuple[int, ...] | None:
        """The revisions of our values, if they are what is there."""
        there = {state.key: (state.value, state.revision) for state in states}
        found = [there.get(write.key, (None, 0)) for write in self.writes]
        if [value for value, _ in found] != [write.value for write in self.writes]:
            return None
        return tuple(revision for _, revision in found)
