"""One term: from when this process gets the beat's lock until it loses or releases it, and what it stores."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, TypeVar

from celery_etcdlock.core.beat_state import (
    ABSENT_SECONDS,
    EntryState,
    Phase,
    Unreadable,
    WorkState,
    decode_state,
    encode_state,
    not_from_the_future,
)
from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.errors import EtcdLockError, LockLost, LockUnavailable
from celery_etcdlock.locking.done_marks import DoneMarks
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.saved_states import SavedStates
from celery_etcdlock.tasks.execution.interruption import Interruption

logger = logging.getLogger("celery_etcdlock")

Result = TypeVar("Result")

#: Seconds that a tick claimed by the last beat is left alone: if that beat lives, it marks by then what it sent.
GRACE_SECONDS = 2.0

#: Where the scheduler at work is written down. No entry's name has this segment (``core.name_escaping``).
WORK = "~work"
UNNAMED = "~unnamed"


class StateTooNew(EtcdLockError):
    """The store has states that a newer version wrote."""


def mark_of(task_id: str) -> Delivery:
    """A tick's done mark."""
    return Delivery(f"beat: {task_id}")


def segment_of(name: object) -> str:
    """An entry's key: its name, escaped and bounded."""
    return escape_name(str(name)) if str(name) else UNNAMED


@dataclass
class Tick:
    """One tick of an entry, as it is or will be in the store."""

    segment: str
    entry: Any
    state: EntryState
    not_before: float = 0.0
    late_in_sending: bool = False
    #: Claimed by an earlier scheduler, which may have sent it.
    left_behind: bool = False

    @property
    def due_text(self) -> str:
        due = self.state.due_at if self.state.due_at is not None else self.state.last_run_at
        return datetime.fromtimestamp(due, timezone.utc).isoformat()


@dataclass
class Term:
    """See the module. For the thread that ticks; ``interrupt`` may be called in any."""

    lock: Lock
    saved_states: SavedStates
    marks: DoneMarks
    at_least_once: bool
    catch_up_seconds: float | None
    on_sent: Callable[[EntryState, float], None]
    clock: Callable[[], float] = time.time
    over: bool = False
    #: What a claim found out, to be raised where Celery doesn't swallow it.
    lost: LockLost | None = None
    broker_away: bool = False
    states: dict[str, EntryState] = field(default_factory=dict)
    #: Claimed, and about to be sent.
    claimed: dict[str, Tick] = field(default_factory=dict)
    #: Claimed, and couldn't be sent yet.
    unsent: dict[str, Tick] = field(default_factory=dict)
    #: Asked to be claimed, without an answer.
    doubtful: dict[str, Tick] = field(default_factory=dict)
    _confirmations: dict[str, EntryState] = field(default_factory=dict)
    _away_said: bool = False
    _interruption: Interruption | None = None

    def check(self) -> None:
        """Raise ``LockLost`` unless this process is the beat."""
        if self.over:
            raise LockLost(self.lock.name, "this scheduler's term is over")
        if self.lost is not None:
            raise self.lost
        self.lock.check()

    def interruptible(self, body: Callable[[], Result]) -> Result:
        """Run ``body``; ``LockLost`` is raised in it, or before it, when this process isn't the beat any more."""
        interruption = self._interruption = Interruption()
        try:
            self.check()
            return interruption.run(body)
        finally:
            self._interruption = None

    def interrupt(self, reason: str) -> None:
        interruption = self._interruption
        if interruption is not None:
            interruption.interrupt(LockLost(self.lock.name, reason))

    def begin(self, work: WorkState) -> WorkState:
        """Read what the last beat left, and write that we are at work. Returns what was written.

        Raises ``LockUnavailable``, ``LockLost``, and ``StateTooNew``, after which nothing must be scheduled.
        """
        found = {key: decode_state(value) for key, value in self.saved_states.load().items()}
        newer = [key for key, state in found.items() if isinstance(state, Unreadable)]
        if newer:
            raise StateTooNew(
                f"{len(newer)} states of the beat, such as that of {newer[0]!r}, were written by a newer version of "
                "celery-etcdlock: this one doesn't schedule, so that nothing is sent twice. Upgrade it"
            )
        for key, state in found.items():
            if isinstance(state, EntryState):
                believed = self.states[key] = not_from_the_future(state, self.clock())
                if believed is not state:
                    logger.warning(
                        "celery-etcdlock: %r ran last %.0f s in the future, by another host's clock: it counts as now",
                        state.name,
                        state.last_run_at - self.clock(),
                    )
        before = found.get(WORK)
        if isinstance(before, WorkState):
            work = replace(work, takeovers=before.takeovers + 1)
        self.saved_states.save({WORK: encode_state(work)})
        for key, state in self.states.items():
            if state.phase is Phase.CLAIMED:
                not_before = time.monotonic() + GRACE_SECONDS
                self.unsent[key] = Tick(key, None, state, not_before, late_in_sending=True, left_behind=True)
        if self.unsent and not self.at_least_once:
            logger.warning(
                "celery-etcdlock: %s ticks were claimed and maybe not sent; they are dropped", len(self.unsent)
            )
            self.unsent.clear()
        return work

    def note_absent(self, present: Iterable[str]) -> None:
        """Mark the states of entries that this schedule doesn't have, and delete those marked for long."""
        now, here = self.clock(), set(present)
        changed: dict[str, EntryState | None] = {}
        for key, state in self.states.items():
            if state.absent_since is not None and now - state.absent_since > ABSENT_SECONDS:
                changed[key] = None
            elif (key in here) != (state.absent_since is None):
                changed[key] = replace(state, absent_since=None if key in here else now)
        self.save(changed)

    def claim(self, tick: Tick) -> None:
        """Claim the tick. Raises ``LockUnavailable`` (then it is in doubt, and asked for again) and ``LockLost``."""
        self.check()
        self.doubtful[tick.segment] = tick
        self.save({tick.segment: tick.state})
        self.doubtful.pop(tick.segment, None)
        self.claimed[tick.segment] = tick

    def skip(self, tick: Tick) -> None:
        """Write down that the tick is too old to be sent."""
        logger.warning(
            "celery-etcdlock: the tick of %r that was due at %s is skipped: it is older than etcdlock_beat_catch_up",
            tick.state.name,
            tick.due_text,
        )
        self.save({tick.segment: tick.state})

    def sent(self, tick: Tick, *, failed: bool = False) -> None:
        """The tick is with the broker, or will never be. Confirmed with the next claim, or by ``confirm``."""
        now = self.clock()
        if tick.late_in_sending:
            tick.state = replace(tick.state, last_run_at=max(now, tick.state.last_run_at))
        self._settle(tick, Phase.SKIPPED if failed else Phase.PUBLISHED)
        if not failed:
            self.on_sent(tick.state, max(0.0, now - (tick.state.due_at or now)))

    def was_sent(self, tick: Tick) -> bool:
        """Whether the scheduler that claimed it said that it sent it. Raises ``LockUnavailable``."""
        if not tick.left_behind or not self.marks.seen(mark_of(tick.state.task_id or "")):
            return False
        self._settle(tick, Phase.PUBLISHED)
        return True

    def sent_and_not_confirmed(self) -> list[str]:
        """The ids of ticks that were sent, while etcd has them as claimed: the next beat would send them again."""
        waiting = self._confirmations.values()
        return [state.task_id for state in waiting if state.phase is Phase.PUBLISHED and state.task_id]

    def keep(self, tick: Tick, seconds: float) -> None:
        """The tick couldn't be sent: again after so many seconds."""
        self.claimed.pop(tick.segment, None)
        tick.not_before = time.monotonic() + seconds
        tick.late_in_sending = True
        self.unsent[tick.segment] = tick

    def _settle(self, tick: Tick, phase: Phase) -> None:
        self.claimed.pop(tick.segment, None)
        self.unsent.pop(tick.segment, None)
        tick.state = replace(tick.state, phase=phase, fence=self.lock.fencing_token)
        self.states[tick.segment] = tick.state
        if self.at_least_once or phase is Phase.SKIPPED:
            self._confirmations[tick.segment] = tick.state

    def drop(self, tick: Tick) -> None:
        """The tick's entry is gone: nobody sends it any more."""
        self._settle(tick, Phase.SKIPPED)

    def confirm(self) -> None:
        """Confirm what was sent. Raises ``LockUnavailable`` and ``LockLost``."""
        self.save({})

    def save(self, states: Mapping[str, EntryState | None]) -> None:
        """Write states (``None``: delete) and what is to be confirmed. Raises ``LockUnavailable`` and ``LockLost``."""
        both: dict[str, EntryState | None] = {**self._confirmations, **states}
        if not both:
            return
        self.saved_states.save({key: None if state is None else encode_state(state) for key, state in both.items()})
        self._confirmations.clear()
        for key, state in both.items():
            if state is None:
                self.states.pop(key, None)
            else:
                self.states[key] = state
        self._away_said = False

    @contextmanager
    def troubles_noted(self) -> Iterator[None]:
        """An outage is logged, a loss kept for ``check``. Celery would take it for a fault of the entry's schedule."""
        try:
            yield
        except LockUnavailable as error:
            self.etcd_is_away(error)
        except LockLost as error:
            self.lost = error

    def etcd_is_away(self, error: LockUnavailable) -> None:
        """Log it, as a warning once per outage."""
        logger.log(
            logging.DEBUG if self._away_said else logging.WARNING,
            "celery-etcdlock: etcd is unreachable (%s); ticks wait for it, this beat holds its lock for another %.1f s",
            error,
            self.lock.remaining,
        )
        self._away_said = True
