"""The states that the holder of a lock keeps for the next one, as the holder sees them: read once, then written.

While the lock is held nobody else writes them (``core.protocol.save_states``), so what was read and written is
remembered. A save without an answer isn't forgotten: the next save repeats it as it was, before anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from celery_etcdlock.core.operations import HeldKey, LoadStates, StateWrite
from celery_etcdlock.core.protocol import GuardLost, Overtaken, Save, Saved
from celery_etcdlock.core.replies import StatesSeen
from celery_etcdlock.errors import LockLost
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.lock_store import LockStore

#: States in one save: etcd allows 128 operations in a transaction by default, and comparisons count alike.
MOST_WRITES = 60


@dataclass(eq=False)
class SavedStates:
    """For use by one thread. ``guard`` is the lock's key; ``timeout_seconds`` bounds each call."""

    _store: LockStore
    _clock: Clock
    _timeout_seconds: float
    _name: str
    _guard: HeldKey
    _known: dict[str, tuple[bytes, int]] = field(init=False, default_factory=dict)
    _doubtful: Mapping[str, bytes | None] = field(init=False, default_factory=dict)

    def load(self) -> dict[str, bytes]:
        """Read all states anew. Raises ``LockUnavailable``."""
        reply = self._store.perform(LoadStates(self._name), self._timeout_seconds)
        if not isinstance(reply, StatesSeen):
            raise TypeError(f"a load was answered with {reply!r}")
        self._known = {state.key: (state.value, state.revision) for state in reply.states}
        return {key: value for key, (value, _) in self._known.items()}

    def save(self, values: Mapping[str, bytes | None]) -> None:
        """Have these states be as given (``None``: gone), up to ``MOST_WRITES`` of them all or none.

        Raises ``LockUnavailable`` when there is no answer: they may be saved or not, and the same may be saved again.
        Raises ``LockLost`` when the lock isn't ours any more, or somebody else wrote a state in spite of it.
        """
        if self._doubtful:
            self._save(self._doubtful)
        self._save(values)

    def _save(self, values: Mapping[str, bytes | None]) -> None:
        changed = {key: value for key, value in values.items() if value != self._known.get(key, (None, 0))[0]}
        keys = list(changed)
        for start in range(0, len(keys), MOST_WRITES):
            self._save_at_once({key: changed[key] for key in keys[start : start + MOST_WRITES]})

    def _save_at_once(self, values: Mapping[str, bytes | None]) -> None:
        writes = tuple(StateWrite(key, value, self._known.get(key, (b"", 0))[1]) for key, value in values.items())
        deadline = self._clock() + self._timeout_seconds
        self._doubtful = values  # also when a signal interrupts it half-way
        machine = Save(guard=self._guard, name=self._name, writes=writes, deadline=deadline)
        outcome = drive(machine, self._store, self._clock)
        if isinstance(outcome, Saved):
            self._doubtful = {}
            for (key, value), revision in zip(values.items(), outcome.revisions, strict=True):
                if value is None:
                    self._known.pop(key, None)
                else:
                    self._known[key] = (value, revision)
            return
        if isinstance(outcome, GuardLost):
            raise LockLost(self._guard.name, "its key was gone when a state was saved")
        if isinstance(outcome, Overtaken):
            raise LockLost(self._guard.name, "somebody else wrote a state that it guards")
        if not outcome.doubtful:
            self._doubtful = {}
        raise outcome.error
